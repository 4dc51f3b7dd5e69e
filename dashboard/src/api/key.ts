// The API key: kept in this tab alone, until it is closed.
import { signal } from "@preact/signals";

const NAME = "sharpzo.key";

/** The key that requests carry, or null. */
export const key = signal<string | null>(sessionStorage.getItem(NAME));
/** Whether the service has asked for a key that it did not get. */
export const keyWanted = signal(false);

export function keyHeaders(): Record<string, string> {
  return key.value === null ? {} : { Authorization: `Bearer ${key.value}` };
}

/** The key that a request was sent with. */
export function keyOf(headers: Headers): string | null {
  return headers.get("Authorization")?.replace(/^Bearer /, "") ?? null;
}

export function takeKey(text: string): void {
  sessionStorage.setItem(NAME, text);
  key.value = text;
  keyWanted.value = false;
}

/** The service refused the key that was sent; by now another may be in use, which stays. */
export function forgetKey(sent: string | null): void {
  if (key.value !== sent) return;
  sessionStorage.removeItem(NAME);
  key.value = null;
  keyWanted.value = true;
}
