// Hyperparameters as flat names, as `--set` takes them.
import { fetchRaw } from "../api/client";

type Values = Record<string, unknown>;

/** `{cma: {sigma: 0.4}}` as `[["cma.sigma", "0.4"]]`. */
export function flatten(config: Values, prefix = ""): [string, string][] {
  return Object.entries(config).flatMap(([name, value]): [string, string][] => {
    const path = `${prefix}${name}`;
    return isGroup(value) ? flatten(value, `${path}.`) : [[path, text(value)]];
  });
}

function isGroup(value: unknown): value is Values {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function text(value: unknown): string {
  if (value === null) return "–";
  return typeof value === "string" ? value : JSON.stringify(value);
}

interface Schema {
  default?: unknown;
  $ref?: string;
  properties?: Record<string, Schema>;
}

/** The default of each hyperparameter, from the service's OpenAPI document. */
export async function loadDefaults(signal: AbortSignal): Promise<ReadonlyMap<string, string>> {
  const document = await (await fetchRaw("/openapi.json", { signal })).json();
  const schemas = document.components.schemas as Record<string, Schema>;
  const defaults = ({ properties = {} }: Schema): Values =>
    Object.fromEntries(
      Object.entries(properties).map(([name, schema]) => {
        const section = schemas[schema.$ref?.split("/").at(-1) ?? ""];
        return [name, section === undefined ? (schema.default ?? null) : defaults(section)];
      }),
    );
  return new Map(flatten(defaults(schemas["TuningConfig"] ?? {})));
}
