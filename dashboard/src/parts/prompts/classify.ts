// Asking what images are, in requests of a size that the service takes.
import { ApiError, fetchRaw, type ClassifyResult } from "../../api/client";

const MOST_IMAGES = 16; // of a request: answers come soon
const MOST_BYTES = 48e6; // of a request; the service takes 64 MiB
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

/** What could not be asked for, and was left out. */
export type LeftOut = "calibrated" | "zeroShot";

const REFUSALS: Record<string, LeftOut> = {
  not_calibrated: "calibrated",
  zero_shot_unavailable: "zeroShot",
};

/** Cut files into parts, none of which is too much for a request. */
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

/** Classify; what the prompt cannot do is left out of the question, and told to `onLeftOut`. */
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
  for (const file of files) form.append("images", file, "image"); // names are nobody's business
  const query = new URLSearchParams({
    top_k: String(TOP_K),
    calibrated: String(question.calibrated),
    zero_shot: String(question.zeroShot),
  });
  const path = `/v1/prompts/${encodeURIComponent(question.ref)}/classify?${query}`;
  const answer = await fetchRaw(path, { method: "POST", body: form, signal });
  return (await answer.json()) as Answer;
}
