// Classifies images, in requests of a size that the service accepts.
import { ApiError, fetchRaw, type ClassifyResult } from "../../api/client";

const MOST_IMAGES = 16; // per request, so that results arrive soon
const MOST_BYTES = 48e6; // per request; the service accepts 64 MiB
const TOP_K = 5;

export interface Question {
  ref: string;
  calibrated: boolean;
  zeroShot: boolean;
}

export interface Answer {
  name: string;
  version: number;
  results: ClassifyResult[];
}

/** An option that the prompt does not support. */
export type LeftOut = "calibrated" | "zeroShot";

const REFUSALS: Record<string, LeftOut> = {
  not_calibrated: "calibrated",
  zero_shot_unavailable: "zeroShot",
};

/** Split images into parts that each fit into one request. */
export function parts<T extends { file: File }>(images: readonly T[]): T[][] {
  const made: T[][] = [];
  let last: T[] = [];
  let size = 0;
  for (const image of images) {
    if (last.length === 0 || last.length >= MOST_IMAGES || size + image.file.size > MOST_BYTES) {
      last = [];
      size = 0;
      made.push(last);
    }
    last.push(image);
    size += image.file.size;
  }
  return made;
}

/** Classify without the options that the prompt does not support; `onLeftOut` receives those. */
export async function classify(
  files: readonly File[],
  question: Question,
  signal: AbortSignal,
  onLeftOut: (what: LeftOut) => void,
): Promise<Answer> {
  try {
    return await ask(files, question, signal);
  } catch (error) {
    const what = error instanceof ApiError ? REFUSALS[error.problem.code ?? ""] : undefined;
    if (what === undefined || !question[what]) throw error;
    onLeftOut(what);
    return await classify(files, { ...question, [what]: false }, signal, onLeftOut);
  }
}

async function ask(
  files: readonly File[],
  question: Question,
  signal: AbortSignal,
): Promise<Answer> {
  const form = new FormData();
  for (const file of files) form.append("images", file, "image"); // file names may be private
  const query = new URLSearchParams({
    top_k: String(TOP_K),
    calibrated: String(question.calibrated),
    zero_shot: String(question.zeroShot),
  });
  const path = `/v1/prompts/${encodeURIComponent(question.ref)}/classify?${query}`;
  const answer = await fetchRaw(path, { method: "POST", body: form, signal });
  return (await answer.json()) as Answer;
}
