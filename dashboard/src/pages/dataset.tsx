export function DatasetPage(_: { id: string }) {
  return <h1>DatasetPage</h1>;
}
