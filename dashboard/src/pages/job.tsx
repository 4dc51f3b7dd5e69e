// One job: its progress, its history, and everything that can be done with it.
import type { ComponentChildren } from "preact";
import { useRef, useState } from "preact/hooks";
import { Link, useLocation } from "wouter-preact";
import { api, download, type Job, type JobEvent } from "../api/client";
import { key } from "../api/key";
import { useEvents, useLiveJob } from "../api/live";
import { Curves } from "../charts/curves";
import {
  Basis,
  Empty,
  Fact,
  JobLink,
  Progress,
  Status,
  Text,
  compared,
  isOver,
} from "../parts/basics";
import { count, decimal, duration, isolated, moment, percent, points } from "../parts/format";
import { attempt } from "../parts/notices";
import { Waiting, useResource } from "../parts/resource";
import { flatten, loadDefaults } from "../parts/settings";
import { useTitle } from "../parts/title";

export function JobPage({ id }: { id: string }) {
  const [turn, setTurn] = useState(0);
  const live = useLiveJob(id, turn);
  const events = useEvents(id, turn);
  const { job, steps, state, error } = live;
  useTitle(job && isolated(job.name ?? job.id));
  if (error !== undefined) {
    return (
      <p class="notice bad" role="alert">
        {error.message}
      </p>
    );
  }
  if (job === undefined) return <Waiting />;
  return (
    <>
      <div class="title">
        <h1>
          <Text>{job.name ?? job.id}</Text>
        </h1>
        <Status job={job} />
        {state === "lost" && (
          <span class="bad-text" role="status">
            Connection lost, reconnecting…
          </span>
        )}
        <Actions job={job} onResumed={() => setTurn(turn + 1)} />
      </div>
      {job.error !== null && (
        <p class="notice bad" role="alert">
          <span>
            <strong>{job.error.code}</strong> · {job.error.message}
          </span>
        </p>
      )}
      <Summary job={job} />
      {job.kind === "tuning" && (
        <section class="card" aria-label="Curves">
          {steps.length > 0 ? (
            <>
              <Curves steps={steps} events={events} selected={job.metrics.selected_step} />
              <p class="actions below">
                <Steps job={job} />
              </p>
            </>
          ) : (
            <Empty>The curves start with the first step of the search.</Empty>
          )}
        </section>
      )}
      <Events events={events} />
      <Settings job={job} />
    </>
  );
}

function Summary({ job }: { job: Job }) {
  const { progress } = job;
  return (
    <section class="card" aria-label="Summary">
      <dl class="facts">
        {!isOver(job) && (
          <Fact name="Progress">
            <Progress job={job} />
          </Fact>
        )}
        {job.kind === "tuning" ? <TuningFacts job={job} /> : <ApplyingFacts job={job} />}
        <Fact name="Forward passes">{count(progress.forward_passes)}</Fact>
        <Fact name={isOver(job) ? "Ran for" : "Running for"}>{duration(runningSeconds(job))}</Fact>
        <Fact name="Attempt">{job.attempt}</Fact>
        {job.checkpoint !== null && (
          <Fact name="Checkpoint">
            step {job.checkpoint.step}, <small>{moment(job.checkpoint.saved_at)}</small>
          </Fact>
        )}
        <Fact name="Dataset">
          <Link href={`/datasets/${job.dataset_id}`}>
            <code>{job.dataset_id}</code>
          </Link>
        </Fact>
        <Fact name="Backbone">
          <Text>{job.backbone}</Text>
        </Fact>
        {job.from_checkpoint !== null && (
          <Fact name="Continues">
            <JobLink id={job.from_checkpoint} />
          </Fact>
        )}
        {Object.entries(job.metadata).map(([name, value]) => (
          <Fact key={name} name={name}>
            <Text>{value}</Text>
          </Fact>
        ))}
      </dl>
    </section>
  );
}

function TuningFacts({ job: { metrics, stopped_by } }: { job: Job }) {
  const reached = metrics.test_accuracy ?? metrics.val_accuracy;
  return (
    <>
      <Fact name="Zero-shot">
        <span class="large">{percent(metrics.zero_shot_accuracy)}</span>
        <Basis accuracy={metrics.zero_shot_accuracy} {...compared(metrics)} />
      </Fact>
      <Fact name={metrics.test_accuracy == null ? "Validation accuracy" : "Tuned"}>
        <span class="large good-text">{percent(reached)}</span>{" "}
        {metrics.test_accuracy != null && (
          <small class="nowrap">
            {points(metrics.zero_shot_accuracy, metrics.test_accuracy)} points
          </small>
        )}
        <Basis accuracy={reached} {...compared(metrics)} />
      </Fact>
      {metrics.prompt_test_accuracy != null && (
        <Fact name="Prompt without head">
          {percent(metrics.prompt_test_accuracy)}
          <Basis accuracy={metrics.prompt_test_accuracy} {...compared(metrics)} />
        </Fact>
      )}
      {stopped_by === "finished" && <Fact name="Search">finished early, as asked</Fact>}
      <Fact name="Training loss">{decimal(metrics.loss)}</Fact>
      {metrics.selected_step != null && (
        <Fact name="Selected step">
          {metrics.selected_step === 0 ? (
            <span title="No step did better on the validation images">none</span>
          ) : (
            count(metrics.selected_step)
          )}
        </Fact>
      )}
    </>
  );
}

function ApplyingFacts({ job: { metrics, kind } }: { job: Job }) {
  const accuracy = (value: number | null | undefined) => (
    <>
      {percent(value)}
      <Basis accuracy={value} images={metrics.images} />
    </>
  );
  const pairs: [string, ComponentChildren][] =
    kind === "evaluation"
      ? [
          ["Accuracy", accuracy(metrics.accuracy)],
          ["Zero-shot", accuracy(metrics.zero_shot_accuracy)],
          ["Mean over classes", percent(metrics.macro_accuracy)],
          ["Calibration error", percent(metrics.ece)],
        ]
      : [];
  return (
    <>
      {[...pairs, ["Images", count(metrics.images)], ["Unreadable", count(metrics.errors)]].map(
        ([name, value]) => (
          <Fact key={name} name={name ?? ""}>
            {value}
          </Fact>
        ),
      )}
    </>
  );
}

function runningSeconds(job: Job): number | null {
  if (job.started_at === null) return null;
  const end = job.finished_at === null ? Date.now() : Date.parse(job.finished_at);
  return (end - Date.parse(job.started_at)) / 1000;
}

type Move = "pause" | "resume" | "cancel" | "finish";
const MOVES: Record<Move, readonly Job["status"][]> = {
  pause: ["queued", "running"],
  resume: ["paused", "failed", "cancelled"],
  cancel: ["queued", "running", "pausing", "paused"],
  finish: ["running", "pausing", "paused"],
};
const DONE: Record<Move, string> = {
  pause: "The job saves a checkpoint and pauses.",
  resume: "The job continues from its last checkpoint.",
  cancel: "The job stops; it can be resumed from its last checkpoint.",
  finish: "The job ends its search and publishes its best prompt so far.",
};

function Actions({ job, onResumed }: { job: Job; onResumed: () => void }) {
  const [, go] = useLocation();
  const params = { path: { job_id: job.id } };
  const move = async (name: Move) => {
    const url = `/v1/jobs/{job_id}/${name}` as const;
    const went = await attempt(() => api.POST(url, { params }), DONE[name]);
    if (went && name === "resume") onResumed();
  };
  const remove = async () => {
    const act = () => api.DELETE("/v1/jobs/{job_id}", { params });
    if (await attempt(act, "The job was deleted; its prompt stays.")) go("/jobs");
  };
  const may = (name: Move) => MOVES[name].includes(job.status);
  const mayFinish = may("finish") && job.kind === "tuning" && !job.finishing;
  return (
    <p class="actions">
      {job.prompt_id !== null && (
        <Link href={`/prompts/${job.prompt_id}`} class="button">
          Prompt
        </Link>
      )}
      {job.status === "succeeded" && job.kind !== "classification" && <Report job={job} />}
      {may("pause") && (
        <button class="quiet" onClick={() => move("pause")}>
          Pause
        </button>
      )}
      {may("resume") && (
        <button class="quiet" onClick={() => move("resume")}>
          Resume
        </button>
      )}
      {mayFinish && (
        <button class="quiet" onClick={() => move("finish")}>
          Finish now
        </button>
      )}
      {may("cancel") && (
        <button class="danger" onClick={() => move("cancel")}>
          Cancel
        </button>
      )}
      {isOver(job) && <Delete onDelete={remove} />}
    </p>
  );
}

/** A link to the report; with a key, which links do not send, a button that saves it. */
function Report({ job }: { job: Job }) {
  const path = `/v1/jobs/${job.id}/report`;
  if (key.value === null) {
    return (
      <a class="button quiet" href={path} target="_blank">
        Report
      </a>
    );
  }
  return (
    <button class="quiet" onClick={() => attempt(() => download(path, `${job.id}.html`))}>
      Save report
    </button>
  );
}

function Delete({ onDelete }: { onDelete: () => void }) {
  const dialog = useRef<HTMLDialogElement>(null);
  return (
    <>
      <button class="danger" onClick={() => dialog.current?.showModal()}>
        Delete
      </button>
      <dialog ref={dialog} aria-labelledby="delete-title">
        <h2 id="delete-title">Delete this job?</h2>
        <p>
          Its events, curves, report and checkpoints are deleted too. The prompt that it published
          stays.
        </p>
        <p class="actions">
          <button class="danger" onClick={onDelete}>
            Delete
          </button>
          <button class="quiet" onClick={() => dialog.current?.close()}>
            Keep
          </button>
        </p>
      </dialog>
    </>
  );
}

function Steps({ job }: { job: Job }) {
  const path = `/v1/jobs/${job.id}/metrics?resolution=10000`;
  const save = () => download(path, `${job.id}.csv`, { Accept: "text/csv" });
  return (
    <button class="quiet" onClick={() => attempt(save)}>
      All steps as CSV
    </button>
  );
}

function Events({ events }: { events: readonly JobEvent[] }) {
  return (
    <section class="card" aria-labelledby="events-title">
      <h2 id="events-title">Events</h2>
      {events.length === 0 ? (
        <Empty>None yet.</Empty>
      ) : (
        <ol class="events" aria-live="polite" aria-relevant="additions" tabIndex={0}>
          {events.toReversed().map((event) => (
            <li key={event.seq} class={event.level}>
              <time dateTime={event.created_at} title={moment(event.created_at)}>
                {clock(event.created_at)}
              </time>
              <span>
                <strong>{event.type}</strong> {describe(event)}
              </span>
            </li>
          ))}
        </ol>
      )}
    </section>
  );
}

function describe({ message, data: { phase, phase_label: label } }: JobEvent): string {
  const isNamed = typeof phase === "string" && typeof label === "string";
  return isNamed ? message.replace(phase, label) : message;
}

function clock(time: string): string {
  return new Date(time).toLocaleTimeString("en-GB");
}

/** The whole configuration; a search's values other than the defaults are bold. */
function Settings({ job }: { job: Job }) {
  const isSearch = job.kind === "tuning";
  const { value: defaults } = useResource(
    async (signal) => (isSearch ? await loadDefaults(signal) : new Map<string, string>()),
    [isSearch],
  );
  const isChanged = (name: string, value: string) =>
    defaults?.has(name) === true && defaults.get(name) !== value;
  return (
    <section class="card" aria-labelledby="settings-title">
      <h2 id="settings-title">Configuration</h2>
      {isSearch && defaults !== undefined && (
        <p>
          <small>Values other than the defaults are bold.</small>
        </p>
      )}
      <dl class="settings">
        {flatten(job.config).map(([name, value]) => (
          <div key={name}>
            <dt>
              <code>{name}</code>
            </dt>
            <dd>
              {isChanged(name, value) ? (
                <strong>
                  <Text>{value}</Text>
                </strong>
              ) : (
                <Text>{value}</Text>
              )}
            </dd>
          </div>
        ))}
      </dl>
    </section>
  );
}
