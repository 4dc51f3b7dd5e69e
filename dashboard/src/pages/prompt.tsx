export function PromptPage(_: { reference: string }) {
  return <h1>PromptPage</h1>;
}
