export function TryPage(_: { reference: string }) {
  return <h1>TryPage</h1>;
}
