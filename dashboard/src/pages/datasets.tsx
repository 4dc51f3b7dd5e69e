export function DatasetsPage(_: { x?: string }) {
  return <h1>DatasetsPage</h1>;
}
