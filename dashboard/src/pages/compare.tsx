// Several jobs in one chart.
import type { ComponentProps } from "preact";
import { useMemo, useState } from "preact/hooks";
import { Link, useLocation } from "wouter-preact";
import { ApiError, api, body, type Job, type Step } from "../api/client";
import { AXES, AxisChoice, axisOr, type Axis } from "../charts/axis";
import { LineChart } from "../charts/line-chart";
import { Basis, Empty, Status, Table, Text, compared, isOver } from "../parts/basics";
import { count, decimal, duration, isolated, percent } from "../parts/format";
import { Choice } from "../parts/forms/choice";
import { Shown, useResource } from "../parts/resource";
import { flatten } from "../parts/settings";
import { useTitle } from "../parts/title";

const COLOURS = ["--line1", "--line2", "--line3", "--line4", "--line5", "--line6"];
/** Jobs in one chart, limited by the number of colours. */
export const COMPARED = COLOURS.length;
const RESOLUTION = 500;
const LIVELY = 3; // seconds
const OFFERED = 100; // jobs to choose from

const MEASURES = {
  val_accuracy: { title: "Validation accuracy", format: percent },
  loss: { title: "Training loss", format: decimal },
  val_loss: { title: "Validation loss", format: decimal },
  sigma: { title: "Step size σ of CMA-ES", format: decimal },
  sharpness: { title: "Sharpness", format: decimal },
} as const;
type Measure = keyof typeof MEASURES;

interface Run {
  job: Job;
  steps: readonly Step[];
}

export function ComparePage({ chosen }: { chosen: string }) {
  useTitle("Compare");
  const ids = useMemo(() => chosen.split(",").filter((id) => id !== ""), [chosen]);
  const shown = useMemo(() => ids.slice(0, COMPARED), [ids]);
  const [, go] = useLocation();
  const choose = (next: readonly string[]) => go(`/compare/${next.join(",")}`);
  const drop = (id: string) => choose(ids.filter((other) => other !== id));
  const runs = useResource(
    async (signal) => {
      const found = await Promise.all(shown.map((id) => loadRun(id, signal)));
      return found.filter((run) => run !== null);
    },
    [ids],
    (found) => (found?.every(({ job }) => isOver(job)) ? undefined : LIVELY),
  );
  return (
    <>
      <div class="title">
        <h1>Compare</h1>
        <AddJob ids={ids} onAdd={(id) => choose([...ids, id])} />
      </div>
      {ids.length === 0 ? (
        <section class="card">
          <Empty>
            Choose up to {COMPARED} tuning jobs here, or tick them in the{" "}
            <Link href="/jobs">list of jobs</Link>.
          </Empty>
        </section>
      ) : (
        <Shown of={runs}>
          {(found) => (
            <>
              <Gone
                ids={shown.filter((id) => !found.some(({ job }) => job.id === id))}
                onDrop={drop}
              />
              <Comparison runs={found} />
              <Runs runs={found} onDrop={drop} />
              <Differences runs={found} />
            </>
          )}
        </Shown>
      )}
    </>
  );
}

/** A job and its steps, or null if the job does not exist (any longer). */
async function loadRun(id: string, signal: AbortSignal): Promise<Run | null> {
  const path = { job_id: id };
  const query = { resolution: RESOLUTION };
  try {
    const [job, page] = await Promise.all([
      body(api.GET("/v1/jobs/{job_id}", { params: { path }, signal })),
      body(api.GET("/v1/jobs/{job_id}/metrics", { params: { path, query }, signal })),
    ]);
    return { job, steps: (page as { data: Step[] }).data }; // asked for as JSON
  } catch (error) {
    if (error instanceof ApiError && error.status === 404) return null;
    throw error;
  }
}

function Gone({ ids, onDrop }: { ids: readonly string[]; onDrop: (id: string) => void }) {
  return (
    <>
      {ids.map((id) => (
        <p key={id} class="notice bad" role="alert">
          <span>
            The job <Text>{id}</Text> does not exist.
          </span>
          <button class="quiet" aria-label={`Remove ${id}`} onClick={() => onDrop(id)}>
            Remove
          </button>
        </p>
      ))}
    </>
  );
}

function AddJob({ ids, onAdd }: { ids: readonly string[]; onAdd: (id: string) => void }) {
  const query = { kind: "tuning", limit: OFFERED } as const;
  const jobs = useResource(
    (signal) => body(api.GET("/v1/jobs", { params: { query }, signal })),
    [],
  );
  const left = (jobs.value?.data ?? []).filter((job) => !ids.includes(job.id));
  const add = (event: Event) => {
    const select = event.currentTarget as HTMLSelectElement;
    if (select.value !== "") onAdd(select.value);
    select.value = "";
  };
  return (
    <p class="actions">
      <select aria-label="Add a job" disabled={ids.length >= COMPARED} onChange={add}>
        <option value="">Add a job…</option>
        {left.map((job) => (
          <option key={job.id} value={job.id}>
            {isolated(title(job))} · {job.status}
          </option>
        ))}
      </select>
    </p>
  );
}

function title(job: Job): string {
  return job.name === null ? job.id : `${job.name} · ${job.id.slice(-6)}`;
}

function Comparison({ runs }: { runs: readonly Run[] }) {
  const [measure, setMeasure] = useState<Measure>("val_accuracy");
  const axis = axisOr("forward_passes");
  const { x, lines } = useMemo(() => align(runs, measure, axis), [runs, measure, axis]);
  return (
    <section class="card" aria-label="Curves">
      <p class="actions">
        <Choice label="Measure" value={measure} onChange={setMeasure} options={measureTitles} />
        <AxisChoice value={axis} />
      </p>
      <LineChart
        title={MEASURES[measure].title}
        x={x}
        xLabel={AXES[axis]}
        lines={lines}
        format={MEASURES[measure].format}
        height={360}
      />
    </section>
  );
}

const measureTitles = Object.fromEntries(
  Object.entries(MEASURES).map(([name, { title }]) => [name, title]),
) as Record<Measure, string>;

/** The runs' values over a common x axis, null where a run has none. */
function align(runs: readonly Run[], measure: Measure, axis: Axis) {
  const x = [...new Set(runs.flatMap(({ steps }) => steps.map((step) => step[axis])))];
  x.sort((a, b) => a - b);
  const lines = runs.map(({ job, steps }, index) => {
    const at = new Map(steps.map((step) => [step[axis], step[measure]]));
    return {
      label: title(job),
      colour: COLOURS[index] ?? "--line1",
      values: x.map((value) => at.get(value) ?? null),
    };
  });
  return { x, lines };
}

function Runs({ runs, onDrop }: { runs: readonly Run[]; onDrop: (id: string) => void }) {
  return (
    <section class="card" aria-label="Compared jobs">
      <Table label="Compared jobs">
        <thead>
          <tr>
            {["Job", "State"].map((name) => (
              <th key={name} scope="col">
                {name}
              </th>
            ))}
            {["Zero-shot", "Validation", "Test", "Passes", "Seconds"].map((name) => (
              <th key={name} scope="col" class="number">
                {name}
              </th>
            ))}
            <th scope="col">
              <span class="unseen">Remove</span>
            </th>
          </tr>
        </thead>
        <tbody>
          {runs.map(({ job, steps }, index) => (
            <tr key={job.id}>
              <td>
                <span class={`key-colour c${index + 1}`} aria-hidden="true" />{" "}
                <Link href={`/jobs/${job.id}`}>
                  <Text>{title(job)}</Text>
                </Link>
              </td>
              <td>
                <Status job={job} />
              </td>
              <Accuracies of={job.metrics} />
              <td class="number">{count(job.progress.forward_passes)}</td>
              <td class="number">{duration(steps.at(-1)?.seconds)}</td>
              <td>
                <button
                  class="plain"
                  aria-label={`Remove ${title(job)}`}
                  onClick={() => onDrop(job.id)}
                >
                  ✕
                </button>
              </td>
            </tr>
          ))}
        </tbody>
      </Table>
    </section>
  );
}

function Accuracies({ of }: { of: Job["metrics"] }) {
  const cells: ComponentProps<typeof Basis>[] = [
    { accuracy: of.zero_shot_accuracy, ...compared(of) },
    { accuracy: of.val_accuracy, images: of.validation_images, split: "validation" },
    { accuracy: of.test_accuracy, images: of.test_images },
  ];
  return (
    <>
      {cells.map((cell, index) => (
        <td key={index} class="number">
          {percent(cell.accuracy)}
          <Basis {...cell} />
        </td>
      ))}
    </>
  );
}

/** Only the settings that differ between the jobs. */
function Differences({ runs }: { runs: readonly Run[] }) {
  const settings = runs.map(({ job }) => new Map([...flatten(job.config), ...others(job)]));
  const names = [...new Set(settings.flatMap((known) => [...known.keys()]))];
  const differing = names.filter((name) => new Set(settings.map((s) => s.get(name))).size > 1);
  if (differing.length === 0) return null;
  return (
    <section class="card" aria-labelledby="differences-title">
      <h2 id="differences-title">Differences</h2>
      <Table label="Settings that differ">
        <thead>
          <tr>
            <th scope="col">Setting</th>
            {runs.map(({ job }) => (
              <th key={job.id} scope="col">
                <Text>{title(job)}</Text>
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {differing.map((name) => (
            <tr key={name}>
              <th scope="row">
                <code>{name}</code>
              </th>
              {settings.map((known, index) => (
                <td key={runs[index]?.job.id}>
                  <Text>{known.get(name) ?? "–"}</Text>
                </td>
              ))}
            </tr>
          ))}
        </tbody>
      </Table>
    </section>
  );
}

function others(job: Job): [string, string][] {
  return [
    ["dataset", job.dataset_id],
    ["backbone", job.backbone],
  ];
}
