// Longer text that may quote a user's: it wraps, and turns no writing around it.
export function Prose({ children }: { children: string }) {
  return <bdi class="prose">{children}</bdi>;
}
