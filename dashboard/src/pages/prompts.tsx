export function PromptsPage(_: { x?: string }) {
  return <h1>PromptsPage</h1>;
}
