// References to prompts in addresses, and accuracies that can be compared.
import type { Prompt } from "../../api/client";

export function promptPath(ref: string): string {
  return `/prompts/${encodeURIComponent(ref)}`;
}

export function tryPath(ref: string): string {
  return `/try/${encodeURIComponent(ref)}`;
}

/** A decoded part of an address; text that is wrongly encoded stays as it is. */
export function decoded(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

export interface BeforeAfter {
  before: number | null;
  after: number | null;
  /** The images on which both were measured. */
  split: "test" | "validation";
  /** How many those are; null if unknown. */
  images: number | null;
}

/** Accuracy of the hand-written and of the tuned prompt, on the same images. */
export function accuracies({ metrics }: Pick<Prompt, "metrics">): BeforeAfter {
  const [before, after] = [metrics["zero_shot_accuracy"] ?? null, metrics["test_accuracy"] ?? null];
  if (after !== null) {
    return { before, after, split: "test", images: metrics["test_images"] ?? null };
  }
  return {
    before: metrics["zero_shot_val_accuracy"] ?? null,
    after: metrics["val_accuracy"] ?? null,
    split: "validation",
    images: metrics["validation_images"] ?? null,
  };
}
