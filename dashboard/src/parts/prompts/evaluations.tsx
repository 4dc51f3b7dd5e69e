// Evaluations of a prompt: a form that starts one, and their results.
import { useState } from "preact/hooks";
import { Link } from "wouter-preact";
import { api, body, idempotencyKey, type Dataset, type Job, type Prompt } from "../../api/client";
import { Share, Status, Table, Time, isOver } from "../basics";
import { Named } from "../named";
import { attempt } from "../notices";
import { count, isolated, percent } from "../format";
import { Shown, useResource, type Resource } from "../resource";

const MOST = 100; // jobs to search, and datasets to offer
const SECONDS = 2; // between refreshes while one is running
const SPLITS = ["test", "val", "train"] as const;

/** The evaluations of a prompt among the newest evaluations, newest first. */
export function useEvaluations(promptId: string): Resource<Job[]> {
  return useResource(
    async (signal) => {
      const params = { query: { kind: "evaluation" as const, limit: MOST } };
      const { data } = await body(api.GET("/v1/jobs", { params, signal }));
      return data.filter((job) => job.prompt_id === promptId);
    },
    [promptId],
    (jobs) => (jobs?.every(isOver) === false ? SECONDS : undefined),
  );
}

interface Props {
  prompt: Prompt;
  jobs: Resource<Job[]>;
}

export function EvaluationsCard({ prompt, jobs }: Props) {
  const datasets = useResource(async (signal) => {
    const params = { query: { limit: MOST } };
    const { data } = await body(api.GET("/v1/datasets", { params, signal }));
    return data.filter(({ status, labelled }) => status === "ready" && labelled);
  }, []);
  return (
    <section class="card">
      <h2>Evaluations</h2>
      <Shown of={jobs}>
        {(known) => known.length > 0 && <Jobs jobs={known} datasets={datasets.value ?? []} />}
      </Shown>
      <Shown of={datasets}>
        {(known) =>
          known.length > 0 ? (
            <EvaluateForm prompt={prompt} datasets={known} onDone={jobs.reload} />
          ) : (
            <p class="empty">
              There is no labelled dataset to evaluate it on.{" "}
              <Link href="/datasets">Upload one</Link>
            </p>
          )
        }
      </Shown>
    </section>
  );
}

function Jobs({ jobs, datasets }: { jobs: Job[]; datasets: Dataset[] }) {
  const names = new Map(datasets.map(({ id, name }) => [id, name]));
  return (
    <Table label="Evaluations of this prompt">
      <thead>
        <tr>
          <th>Dataset</th>
          <th>Zero-shot and tuned, 95 % interval</th>
          <th class="number" title="Expected calibration error">
            ECE
          </th>
          <th>Job</th>
        </tr>
      </thead>
      <tbody>
        {jobs.map(({ id, config, dataset_id: dataset, ...job }) => (
          <tr key={id}>
            <td>
              <Link href={`/datasets/${dataset}`}>
                <Named>{names.get(dataset) ?? dataset}</Named>
              </Link>{" "}
              <small>
                {job.metrics.images != null && count(job.metrics.images)}{" "}
                {String(config["split"] ?? "")}
              </small>
            </td>
            <td class="pair">
              <Share
                of={job.metrics.zero_shot_accuracy ?? null}
                kind="before"
                images={job.metrics.images}
              />
              <Share of={job.metrics.accuracy ?? null} kind="after" images={job.metrics.images} />
            </td>
            <td class="number">{percent(job.metrics.ece)}</td>
            <td>
              <Link href={`/jobs/${id}`}>
                {job.status === "succeeded" ? (
                  <Time at={job.created_at} />
                ) : (
                  <Status job={{ id, config, dataset_id: dataset, ...job }} />
                )}
              </Link>
            </td>
          </tr>
        ))}
      </tbody>
    </Table>
  );
}

interface FormProps {
  prompt: Prompt;
  datasets: Dataset[];
  onDone: () => void;
}

function EvaluateForm({ prompt, datasets, onDone }: FormProps) {
  const own = datasets.find(({ id }) => id === prompt.lineage.dataset_id);
  const [chosen, setChosen] = useState(own?.id ?? datasets[0]?.id ?? "");
  const [wanted, setWanted] = useState<(typeof SPLITS)[number]>("test");
  const [started, setStarted] = useState<Job>();
  const dataset = datasets.find(({ id }) => id === chosen);
  const splits = SPLITS.filter((split) => (dataset?.splits[split] ?? 0) > 0);
  const split = splits.includes(wanted) ? wanted : splits[0];
  const submit = async (event: Event) => {
    event.preventDefault();
    if (split === undefined) return;
    const params = { path: { ref: prompt.id }, header: idempotencyKey() };
    const request = { dataset_id: chosen, split, zero_shot: true };
    await attempt(async () => {
      const job = await body(api.POST("/v1/prompts/{ref}/evaluate", { params, body: request }));
      setStarted(job);
      onDone();
    });
  };
  return (
    <form class="form" aria-label="Evaluate on a dataset" onSubmit={submit}>
      <label>
        Evaluate on
        <select value={chosen} onChange={(event) => setChosen(event.currentTarget.value)}>
          {datasets.map(({ id, name }) => (
            <option key={id} value={id}>
              {isolated(name)}
            </option>
          ))}
        </select>
      </label>
      <label>
        Split
        <select
          value={split}
          onChange={(event) => setWanted(event.currentTarget.value as (typeof SPLITS)[number])}
        >
          {splits.map((known) => (
            <option key={known} value={known}>
              {known} ({count(dataset?.splits[known])})
            </option>
          ))}
        </select>
      </label>
      <p class="actions">
        <button type="submit" disabled={split === undefined}>
          Evaluate
        </button>
      </p>
      {started !== undefined && (
        <p class="whole" role="status">
          Started: <Link href={`/jobs/${started.id}`}>open the job</Link>
        </p>
      )}
    </form>
  );
}
