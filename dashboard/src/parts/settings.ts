// Hyperparameters as flat names, as `--set` takes them.

/** `{cma: {sigma: 0.4}}` as `[["cma.sigma", "0.4"]]`. */
export function flatten(config: Record<string, unknown>, prefix = ""): [string, string][] {
  return Object.entries(config).flatMap(([name, value]): [string, string][] => {
    const path = `${prefix}${name}`;
    return isGroup(value) ? flatten(value, `${path}.`) : [[path, text(value)]];
  });
}

function isGroup(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function text(value: unknown): string {
  if (value === null) return "–";
  return typeof value === "string" ? value : JSON.stringify(value);
}
