// Longer text that may quote a user's: it wraps, and does not affect the direction of text around it.
export function Prose({ children }: { children: string }) {
  return <bdi class="prose">{children}</bdi>;
}
