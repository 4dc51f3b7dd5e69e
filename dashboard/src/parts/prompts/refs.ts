// How prompts are named in addresses, and which of their figures compare.
import type { Prompt } from "../../api/client";

const DIRECTIONS = /[\u202a-\u202e\u2066-\u2069]/g; // what turns writing around

export function promptPath(ref: string): string {
  return `/prompts/${encodeURIComponent(ref)}`;
}

export function tryPath(ref: string): string {
  return `/try/${encodeURIComponent(ref)}`;
}

/** What stands in an address; text that is wrongly encoded is taken as it is. */
export function decoded(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

/** Text of a user's where no element can isolate it, such as in an <option>. */
export function isolated(text: string, longest = 60): string {
  const characters = [...text.replace(DIRECTIONS, "")];
  const cut = characters.length > longest ? [...characters.slice(0, longest), "…"] : characters;
  return `\u2068${cut.join("")}\u2069`;
}

export interface BeforeAfter {
  before: number | null;
  after: number | null;
  /** The images that both were measured on. */
  split: "test" | "validation";
}

/** Accuracy of the hand-written and of the tuned prompt, on the same images. */
export function accuracies({ metrics }: Pick<Prompt, "metrics">): BeforeAfter {
  const [before, after] = [metrics["zero_shot_accuracy"] ?? null, metrics["test_accuracy"] ?? null];
  if (after !== null) return { before, after, split: "test" };
  return {
    before: metrics["zero_shot_val_accuracy"] ?? null,
    after: metrics["val_accuracy"] ?? null,
    split: "validation",
  };
}
