// The form that starts a tuning job.
import { useRef, useState } from "preact/hooks";
import { Link, useLocation } from "wouter-preact";
import { api, body, idempotencyKey, type Backbone, type Dataset } from "../api/client";
import { Empty } from "../parts/basics";
import { isolated } from "../parts/format";
import { Shown, useResource } from "../parts/resource";
import { useTitle } from "../parts/title";

const OFFERED = 100; // datasets to choose from
const PRESETS = [
  "default",
  "fast",
  "paper",
  "reference",
  "imagenet",
  "caltech101",
  "oxford_pets",
  "stanford_cars",
  "oxford_flowers",
  "food101",
  "fgvc",
  "sun397",
  "dtd",
  "eurosat",
  "ucf101",
];

export function NewJobPage({ dataset }: { dataset: string }) {
  useTitle("New job");
  const offers = useResource(loadOffers, []);
  return (
    <>
      <div class="title">
        <h1>New job</h1>
      </div>
      <Shown of={offers}>
        {({ datasets, backbones }) =>
          datasets.length === 0 ? (
            <section class="card">
              <Empty>
                A job needs a dataset that is ready: <Link href="/datasets">upload one</Link>.
              </Empty>
            </section>
          ) : (
            <JobForm datasets={datasets} backbones={backbones} chosen={dataset} />
          )
        }
      </Shown>
    </>
  );
}

async function loadOffers(signal: AbortSignal) {
  const params = { query: { limit: OFFERED } };
  const [datasets, backbones] = await Promise.all([
    body(api.GET("/v1/datasets", { params, signal })),
    body(api.GET("/v1/backbones", { signal })),
  ]);
  return {
    datasets: datasets.data.filter((dataset) => dataset.status === "ready" && dataset.labelled),
    backbones: backbones.data,
  };
}

interface FormProps {
  datasets: readonly Dataset[];
  backbones: readonly Backbone[];
  chosen: string;
}

function JobForm({ datasets, backbones, chosen }: FormProps) {
  const [, go] = useLocation();
  const [error, setError] = useState<string>();
  const [busy, setBusy] = useState(false);
  const sent = useRef({ text: "", headers: {} });
  const submit = async (event: SubmitEvent) => {
    event.preventDefault();
    setBusy(true);
    setError(undefined);
    try {
      const wanted = read(new FormData(event.currentTarget as HTMLFormElement));
      const text = JSON.stringify(wanted);
      // Sending the same again after a lost connection must not start a second job.
      if (text !== sent.current.text) sent.current = { text, headers: idempotencyKey() };
      const { headers } = sent.current;
      const job = await body(api.POST("/v1/jobs", { body: wanted, headers }));
      go(`/jobs/${job.id}`);
    } catch (failed) {
      setError(failed instanceof Error ? failed.message : String(failed));
      setBusy(false);
    }
  };
  return (
    <form class="card form" onSubmit={submit}>
      <label>
        Dataset
        <select name="dataset_id" required defaultValue={chosen}>
          {datasets.map((dataset) => (
            <option key={dataset.id} value={dataset.id} selected={dataset.id === chosen}>
              {isolated(dataset.name)} · {dataset.classes.length} classes
            </option>
          ))}
        </select>
      </label>
      <label>
        Backbone
        <input name="backbone" list="backbones" placeholder={nameOfDefault(backbones)} />
        <datalist id="backbones">
          {backbones.map((backbone) => (
            <option key={backbone.name} value={backbone.name} label={describe(backbone)} />
          ))}
        </datalist>
      </label>
      <label>
        Name of the prompt
        <input
          name="name"
          placeholder="jobs of one name publish versions 1, 2, 3"
          maxLength={100}
        />
      </label>
      <label>
        Preset
        <select name="preset">
          {PRESETS.map((preset) => (
            <option key={preset}>{preset}</option>
          ))}
        </select>
      </label>
      <Setting name="shots" label="Shots per class" min={1} />
      <Setting name="seed" label="Seed" min={0} />
      <Setting name="total_steps" label="Maximum steps" min={1} />
      <Setting name="max_forward_passes" label="Maximum forward passes" min={1} />
      <Setting name="max_seconds" label="Maximum seconds" min={1} />
      <label class="whole">
        Other hyperparameters, as JSON; they override the preset
        <textarea
          name="config"
          spellcheck={false}
          placeholder={'{"cma": {"rho": 0.1, "sharpness_estimator": "zo"}, "head": "none"}'}
        />
      </label>
      {error !== undefined && (
        <p class="notice bad whole" role="alert">
          {error}
        </p>
      )}
      <p class="actions whole">
        <button type="submit" disabled={busy}>
          Start tuning
        </button>
      </p>
    </form>
  );
}

function Setting({ name, label, min }: { name: string; label: string; min: number }) {
  return (
    <label>
      {label}
      <input
        name={`config.${name}`}
        type="number"
        min={min}
        step={1}
        placeholder="from the preset"
      />
    </label>
  );
}

function nameOfDefault(backbones: FormProps["backbones"]): string {
  return backbones.find((backbone) => backbone.default)?.name ?? "";
}

/** What runs a backbone, and in which precision. */
function describe({ runtime, precision, agreement }: Backbone): string {
  const agreed = agreement === null ? "" : `, ${(100 * agreement).toFixed(1)} % agreement`;
  return `${runtime}, ${precision ?? "unknown precision"}${agreed}`;
}

/** The request that the form describes; the preset decides empty fields. */
function read(form: FormData) {
  const filled = [...form].filter((entry): entry is [string, string] => entry[1] !== "");
  const fields = Object.fromEntries(filled);
  const numbers = filled
    .filter(([name]) => name.startsWith("config."))
    .map(([name, value]) => [name.slice("config.".length), Number(value)]);
  const config = { ...parse(fields["config"] ?? "{}"), ...Object.fromEntries(numbers) };
  const { dataset_id = "", backbone, name, preset } = fields;
  return {
    dataset_id,
    config,
    ...(backbone !== undefined && { backbone }),
    ...(name !== undefined && { name }),
    ...(preset !== undefined && { preset }),
  };
}

function parse(text: string): Record<string, unknown> {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new Error(
      `/config: is not valid JSON (${error instanceof Error ? error.message : error})`,
    );
  }
}
