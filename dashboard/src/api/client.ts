// The API as the dashboard calls it: typed from the service's own OpenAPI document.
import createClient, { type Middleware } from "openapi-fetch";
import type { components, paths } from "./schema";
import { forgetKey, keyHeaders, keyOf } from "./key";

type Schemas = components["schemas"];
export type Job = Schemas["JobPublic"];
export type JobEvent = Schemas["EventPublic"];
export type Step = Schemas["StepPublic"];
export type Backbone = Schemas["BackbonePublic"];
export type Dataset = Schemas["DatasetPublic"];
export type Prompt = Schemas["PromptPublic"];
export type Alias = Schemas["AliasPublic"];
export type AliasChange = Schemas["AliasChangePublic"];
export type Prediction = Schemas["PredictionPublic"];
export type ClassifyResult = Schemas["ClassifyResult"];
export type Problem = Schemas["Problem"];

/** An error response; `problem` is the service's problem document. */
export class ApiError extends Error {
  constructor(
    readonly status: number,
    readonly problem: Partial<Problem>,
  ) {
    super(describe(status, problem));
  }
}

function describe(status: number, problem: Partial<Problem>): string {
  const fields = (problem.errors ?? []).map((e) => `${e.pointer}: ${e.message}`);
  return [problem.detail ?? problem.title ?? `HTTP ${status}`, ...fields].join(" · ");
}

/** Whether the service refused, so that a retry would be refused as well. */
export function isRefusal(error: unknown): boolean {
  return error instanceof ApiError && error.status < 500 && error.status !== 429;
}

/** The error of a failed response; `sent` is the key of the request. */
export async function failure(response: Response, sent: string | null): Promise<ApiError> {
  if (response.status === 401) forgetKey(sent);
  const problem = await response.json().catch(() => ({}));
  return new ApiError(response.status, problem as Partial<Problem>);
}

const authentication: Middleware = {
  onRequest({ request }) {
    for (const [name, value] of Object.entries(keyHeaders())) request.headers.set(name, value);
    return request;
  },
  async onResponse({ request, response }) {
    if (!response.ok) throw await failure(response, keyOf(request.headers));
  },
};

export const api = createClient<paths>({ baseUrl: location.origin });
api.use(authentication);

/** The body of a successful response; failed ones have thrown. */
export async function body<T>(answer: Promise<{ data?: T }>): Promise<T> {
  return (await answer).data as T;
}

/** A header that makes it safe to repeat a request that creates something. */
export function idempotencyKey(): Record<string, string> {
  const random = crypto.getRandomValues(new Uint8Array(16));
  const key = Array.from(random, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return { "Idempotency-Key": key };
}

/** Fetch something other than JSON, with the key. */
export async function fetchRaw(path: string, init: RequestInit = {}): Promise<Response> {
  const headers = new Headers({ ...keyHeaders(), ...init.headers });
  const response = await fetch(path, { ...init, headers });
  if (!response.ok) throw await failure(response, keyOf(headers));
  return response;
}

/** Save a file; a plain link could not send the key. */
export async function download(
  path: string,
  filename: string,
  headers: Record<string, string> = {},
): Promise<void> {
  const url = URL.createObjectURL(await (await fetchRaw(path, { headers })).blob());
  const link = document.createElement("a");
  link.href = url;
  link.download = filename;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}
