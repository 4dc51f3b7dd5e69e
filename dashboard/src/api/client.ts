// The API as the dashboard calls it: typed from the service's own OpenAPI document.
import createClient, { type Middleware } from "openapi-fetch";
import type { components, paths } from "./schema";
import { forgetKey, keyHeaders, keyOf } from "./key";

type Schemas = components["schemas"];
export type Job = Schemas["JobPublic"];
export type JobEvent = Schemas["EventPublic"];
export type Step = Schemas["StepPublic"];
export type Dataset = Schemas["DatasetPublic"];
export type Prompt = Schemas["PromptPublic"];
export type Alias = Schemas["AliasPublic"];
export type AliasChange = Schemas["AliasChangePublic"];
export type Prediction = Schemas["PredictionPublic"];
export type ClassifyResult = Schemas["ClassifyResult"];
export type Problem = Schemas["Problem"];

/** An answer that says why not; `problem` is the service's own document. */
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

/** Whether the service has said no, and will say so again however often it is asked. */
export function isRefusal(error: unknown): boolean {
  return error instanceof ApiError && error.status < 500 && error.status !== 429;
}

/** The problem that a failed answer holds; `sent` is the key that was asked with. */
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

/** The body of an answer that went well (others have thrown). */
export async function body<T>(answer: Promise<{ data?: T }>): Promise<T> {
  return (await answer).data as T;
}

/** A header that lets a creating request be repeated safely. */
export function idempotencyKey(): Record<string, string> {
  const random = crypto.getRandomValues(new Uint8Array(16));
  const key = Array.from(random, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return { "Idempotency-Key": key };
}

/** Fetch something that is no JSON, with the key. */
export async function fetchRaw(path: string, init: RequestInit = {}): Promise<Response> {
  const headers = new Headers({ ...keyHeaders(), ...init.headers });
  const response = await fetch(path, { ...init, headers });
  if (!response.ok) throw await failure(response, keyOf(headers));
  return response;
}

/** Have the browser save what is behind a path, which a plain link could not fetch with a key. */
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
