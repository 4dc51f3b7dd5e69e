// All jobs, newest first, refreshed while they run.
import { useState } from "preact/hooks";
import { Link, useLocation } from "wouter-preact";
import { api, body, type Job } from "../api/client";
import {
  Basis,
  Empty,
  Progress,
  Status,
  Table,
  Text,
  Time,
  isOver,
  compared,
} from "../parts/basics";
import { count, duration, percent } from "../parts/format";
import { Shown, useResource } from "../parts/resource";
import { useTitle } from "../parts/title";
import { COMPARED } from "./compare";

const PAGE = 50;
const LIVELY = 2; // seconds between refreshes while a job is active
const CALM = 10;
const KINDS = ["tuning", "evaluation", "classification"] as const;
type Kind = (typeof KINDS)[number];
type Query = { limit: number; after?: string; kind?: Kind };
type Page = { data: Job[]; next: string | null };

export function JobsPage() {
  useTitle("Jobs");
  const [kind, setKind] = useState<Kind | "">("");
  const [shown, setShown] = useState(PAGE);
  const jobs = useResource(
    (signal) => newest(shown, kind, signal),
    [shown, kind],
    (found) => (found?.jobs.every(isOver) ? CALM : LIVELY),
  );
  const [chosen, setChosen] = useState<readonly string[]>([]);
  return (
    <>
      <div class="title">
        <h1>Jobs</h1>
        <p class="actions">
          <KindSelect value={kind} onChange={setKind} />
          <CompareButton chosen={chosen} />
          <Link href="/new-job" class="button">
            New job
          </Link>
        </p>
      </div>
      <section class="card" aria-label="Jobs">
        <Shown of={jobs}>
          {({ jobs: found, more }) => (
            <>
              <JobsTable jobs={found} chosen={chosen} onChoose={setChosen} />
              {more && (
                <p class="more">
                  <button class="quiet" onClick={() => setShown(shown + PAGE)}>
                    Show {PAGE} more
                  </button>
                </p>
              )}
            </>
          )}
        </Shown>
      </section>
    </>
  );
}

/** The newest `wanted` jobs, read in pages as large as the service allows. */
async function newest(wanted: number, kind: Kind | "", signal: AbortSignal) {
  const jobs: Job[] = [];
  let after: string | null = null;
  do {
    const limit = Math.min(100, wanted - jobs.length);
    const query: Query = { limit, ...(after && { after }), ...(kind && { kind }) };
    const page: Page = await body(api.GET("/v1/jobs", { params: { query }, signal }));
    jobs.push(...page.data);
    after = page.next;
  } while (after !== null && jobs.length < wanted);
  return { jobs, more: after !== null };
}

function KindSelect({ value, onChange }: { value: string; onChange: (kind: Kind | "") => void }) {
  const change = (event: Event) =>
    onChange((event.currentTarget as HTMLSelectElement).value as Kind);
  return (
    <select aria-label="Kind of jobs" value={value} onChange={change}>
      <option value="">All kinds</option>
      {KINDS.map((kind) => (
        <option key={kind}>{kind}</option>
      ))}
    </select>
  );
}

function CompareButton({ chosen }: { chosen: readonly string[] }) {
  const [, go] = useLocation();
  return (
    <button
      class="quiet"
      disabled={chosen.length === 0}
      onClick={() => go(`/compare/${chosen.join(",")}`)}
    >
      Compare{chosen.length > 0 && ` (${chosen.length})`}
    </button>
  );
}

interface TableProps {
  jobs: readonly Job[];
  chosen: readonly string[];
  onChoose: (ids: readonly string[]) => void;
}

function JobsTable({ jobs, chosen, onChoose }: TableProps) {
  if (jobs.length === 0) {
    return (
      <Empty>
        No jobs yet. <Link href="/datasets">Upload a dataset</Link>, then{" "}
        <Link href="/new-job">tune a prompt on it</Link>.
      </Empty>
    );
  }
  const toggle = (id: string) =>
    onChoose(chosen.includes(id) ? chosen.filter((other) => other !== id) : [...chosen, id]);
  return (
    <Table label="Jobs" stack>
      <thead>
        <tr>
          <th scope="col">
            <span class="unseen">Compare</span>
          </th>
          <th scope="col">Job</th>
          <th scope="col">State</th>
          <th scope="col">Progress</th>
          <th scope="col" class="number">
            Result
          </th>
          <th scope="col" class="number wide-only">
            Passes
          </th>
          <th scope="col" class="wide-only">
            Backbone
          </th>
          <th scope="col" class="wide-only">
            Created
          </th>
        </tr>
      </thead>
      <tbody>
        {jobs.map((job) => (
          <JobRow
            key={job.id}
            job={job}
            chosen={chosen.includes(job.id)}
            full={chosen.length >= COMPARED}
            onToggle={toggle}
          />
        ))}
      </tbody>
    </Table>
  );
}

interface RowProps {
  job: Job;
  chosen: boolean;
  /** Whether as many jobs are chosen as can be compared. */
  full: boolean;
  onToggle: (id: string) => void;
}

function JobRow({ job, chosen, full, onToggle }: RowProps) {
  return (
    <tr>
      <td class="corner">
        {job.kind === "tuning" && (
          <input
            type="checkbox"
            aria-label={`Compare ${job.name ?? job.id}`}
            checked={chosen}
            disabled={full && !chosen}
            onChange={() => onToggle(job.id)}
          />
        )}
      </td>
      <td class="head">
        <Link href={`/jobs/${job.id}`}>
          <Text>{job.name ?? job.id}</Text>
        </Link>
        <br />
        <small>{job.name === null ? job.kind : `${job.kind} · ${job.id.slice(-6)}`}</small>
      </td>
      <td data-label="State">
        <Status job={job} />
      </td>
      <td data-label="Progress">{isOver(job) ? <Took job={job} /> : <Progress job={job} />}</td>
      <td class="number" data-label="Result">
        <Result job={job} />
      </td>
      <td class="number wide-only">{count(job.progress.forward_passes)}</td>
      <td class="wide-only">
        <Text>{job.backbone}</Text>
      </td>
      <td class="wide-only">
        <Time at={job.created_at} />
      </td>
    </tr>
  );
}

function Took({ job }: { job: Job }) {
  if (job.started_at === null || job.finished_at === null) return <>–</>;
  return <>{duration((Date.parse(job.finished_at) - Date.parse(job.started_at)) / 1000)}</>;
}

function Result({ job }: { job: Job }) {
  const { metrics } = job;
  if (job.error !== null) return <span class="bad-text">{job.error.code}</span>;
  if (job.kind !== "tuning") {
    return (
      <>
        {percent(metrics.accuracy)}
        <Basis accuracy={metrics.accuracy} images={metrics.images} />
      </>
    );
  }
  const { test_accuracy: tested, val_accuracy: validated } = metrics;
  return (
    <>
      <span class="nowrap">
        {tested != null && <small>{percent(metrics.zero_shot_accuracy)} → </small>}
        {percent(tested ?? validated)}
      </span>
      <Basis accuracy={tested ?? validated} {...compared(metrics)} />
    </>
  );
}
