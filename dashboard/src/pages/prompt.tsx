// One version of a prompt: its accuracy, its origin, and everything that can be done with it.
import type { ComponentChildren } from "preact";
import { Link, useLocation } from "wouter-preact";
import { api, body, type Alias, type Job, type Prompt } from "../api/client";
import { ClassAccuracy } from "../charts/class-accuracy";
import { Confusion } from "../charts/confusion";
import { Reliability } from "../charts/reliability";
import { AliasesCard, listAliases } from "../parts/prompts/aliases";
import { Basis, Fact, JobLink, Share, Table, Text, Time } from "../parts/basics";
import { EvaluationsCard, useEvaluations } from "../parts/prompts/evaluations";
import { count, decimal, duration, percent, points } from "../parts/format";
import { ShownList, useList } from "../parts/list";
import { Named } from "../parts/named";
import { DeletePrompt, PinButton, backboneName } from "../parts/prompts/prompt";
import { accuracies, decoded, promptPath, tryPath } from "../parts/prompts/refs";
import { loadReport, type Report } from "../parts/reports";
import { Shown, useResource, type Resource } from "../parts/resource";
import { useTitle } from "../parts/title";
import { UseItCard } from "../parts/prompts/use-it";

export function PromptPage({ reference }: { reference: string }) {
  const ref = decoded(reference);
  const prompt = useResource(
    (signal) => body(api.GET("/v1/prompts/{ref}", { params: { path: { ref } }, signal })),
    [ref],
  );
  useTitle(prompt.value && `${prompt.value.name} v${prompt.value.version}`);
  return (
    <>
      <p class="crumb">
        <Link href="/prompts">Prompts</Link>
      </p>
      <Shown of={prompt}>
        {(known) => <Content key={known.id} prompt={known} onChange={prompt.reload} />}
      </Shown>
    </>
  );
}

function Content({ prompt, onChange }: { prompt: Prompt; onChange: () => void }) {
  const aliases = useResource((signal) => listAliases(prompt.name, signal), [prompt.name]);
  const evaluations = useEvaluations(prompt.id);
  const moved = () => {
    aliases.reload();
    onChange();
  };
  return (
    <>
      <Title prompt={prompt} onChange={onChange} />
      <Headline prompt={prompt} />
      <div class="columns">
        <AliasesCard prompt={prompt} aliases={aliases} onChange={moved} />
        <VersionsCard prompt={prompt} />
      </div>
      <ClassCards prompt={prompt} evaluations={evaluations} />
      <div class="columns">
        <EvaluationsCard prompt={prompt} jobs={evaluations} />
        <CalibrationCard evaluations={evaluations} />
      </div>
      <div class="columns">
        <UseItCard prompt={prompt} reference={bestReference(prompt, aliases)} />
        <LineageCard prompt={prompt} />
      </div>
    </>
  );
}

/** Preferably an alias: programs that use it need no change when it moves. */
function bestReference(prompt: Prompt, { value: aliases }: Resource<Alias[]>): string {
  const here = aliases?.find((alias) => alias.prompt_id === prompt.id);
  return here?.ref ?? `${prompt.name}:${prompt.version}`;
}

function Title({ prompt, onChange }: { prompt: Prompt; onChange: () => void }) {
  const [, navigate] = useLocation();
  const ref = `${prompt.name}:${prompt.version}`;
  return (
    <div class="title">
      <h1>
        <Text>{prompt.name}</Text> <span class="version">v{prompt.version}</span>
      </h1>
      <span class="tags">
        {prompt.aliases.map((alias) => (
          <span key={alias} class="tag">
            {alias}
          </span>
        ))}
        {prompt.pinned && <span class="tag">pinned</span>}
      </span>
      <p class="actions">
        <Link class="button" href={tryPath(ref)}>
          Try it
        </Link>
        <PinButton prompt={prompt} onDone={onChange} />
        <DeletePrompt prompt={prompt} onDone={() => navigate("/prompts")} />
      </p>
    </div>
  );
}

function Headline({ prompt }: { prompt: Prompt }) {
  const { before, after, split, images } = accuracies(prompt);
  const { metrics, residency } = prompt;
  return (
    <section class="card" aria-label="Facts">
      <dl class="facts">
        <Fact name={`Tuned, ${split} images`}>
          <span class="large">{percent(after)}</span>
          <Basis accuracy={after} images={images} split={split} />
        </Fact>
        <Fact name="Zero-shot">
          <span class="large faint">{percent(before)}</span>
          <Basis accuracy={before} images={images} split={split} />
        </Fact>
        <Fact name="Gain, points">
          <span class="large">{points(before, after)}</span>
        </Fact>
        <Fact name="Forward passes">
          <span class="large">{count(metrics["forward_passes"])}</span>
        </Fact>
        <Fact name="Time to tune">
          <span class="large">{duration(metrics["seconds"])}</span>
        </Fact>
        <Fact name="Classes">{count(prompt.classes.length)}</Fact>
        <Fact name="Backbone">{backboneName(prompt.backbone)}</Fact>
        <Fact name="Created">
          <Time at={prompt.created_at} />
        </Fact>
        <Fact name="In memory">{residency?.resident ? "yes" : "loaded when needed"}</Fact>
        <Fact name="Id">
          <code class="id">{prompt.id}</code>
        </Fact>
      </dl>
      <details>
        <summary>All metrics</summary>
        <dl class="facts">
          {Object.entries(metrics).map(([name, value]) => (
            <Fact key={name} name={name}>
              {value !== null && Number.isInteger(value) ? count(value) : decimal(value)}
            </Fact>
          ))}
        </dl>
      </details>
      <details>
        <summary>All classes</summary>
        <p class="tags">
          {prompt.classes.map((name, index) => (
            <span key={index} class="tag">
              <Named>{name}</Named>
            </span>
          ))}
        </p>
      </details>
    </section>
  );
}

function VersionsCard({ prompt }: { prompt: Prompt }) {
  const versions = useList(
    (query, signal) =>
      body(api.GET("/v1/prompts", { params: { query: { ...query, name: prompt.name } }, signal })),
    [prompt.name],
  );
  return (
    <section class="card">
      <h2>Versions</h2>
      <ShownList of={versions} empty="None.">
        {(known) => (
          <Table label={`Versions of ${prompt.name}`}>
            <thead>
              <tr>
                <th>Version</th>
                <th>Tuned</th>
                <th class="number">Gain</th>
                <th class="wide-only">Created</th>
              </tr>
            </thead>
            <tbody>
              {known.map((version) => (
                <Version key={version.id} version={version} isHere={version.id === prompt.id} />
              ))}
            </tbody>
          </Table>
        )}
      </ShownList>
    </section>
  );
}

function Version({ version, isHere }: { version: Prompt; isHere: boolean }) {
  const { before, after, split, images } = accuracies(version);
  return (
    <tr>
      <td>
        {isHere ? (
          <strong aria-current="page">v{version.version}</strong>
        ) : (
          <Link href={promptPath(`${version.name}:${version.version}`)}>v{version.version}</Link>
        )}
      </td>
      <td>
        <Share of={after} />
        <Basis accuracy={after} images={images} split={split} />
      </td>
      <td class="number">{points(before, after)}</td>
      <td class="wide-only">
        <Time at={version.created_at} />
      </td>
    </tr>
  );
}

/** From the job that tuned it; for an imported prompt, from its newest evaluation. */
function ClassCards({ prompt, evaluations }: { prompt: Prompt; evaluations: Resource<Job[]> }) {
  const measured = newest(evaluations)?.id;
  const jobId = prompt.job_id ?? measured;
  const report = useResource(
    async (signal) => (jobId === undefined ? null : await loadReport(jobId, signal)),
    [jobId],
  );
  return (
    <Shown of={report}>
      {(known) =>
        known === null ? (
          <section class="card">
            <h2>Accuracy by class</h2>
            <p class="empty">Not measured yet (start an evaluation below).</p>
          </section>
        ) : (
          <div class="columns">
            <Measured title="Accuracy by class" report={known}>
              <ClassAccuracy classes={known.classes} />
            </Measured>
            <Measured title="Confusion" report={known}>
              <Confusion names={known.classes.map(({ name }) => name)} cells={known.confusion} />
            </Measured>
          </div>
        )
      }
    </Shown>
  );
}

interface MeasuredProps {
  title: string;
  report: Report;
  children: ComponentChildren;
}

function Measured({ title, report, children }: MeasuredProps) {
  return (
    <section class="card">
      <h2>
        {title}{" "}
        <small>
          {count(report.images)} {report.split} images
        </small>
      </h2>
      {children}
    </section>
  );
}

function CalibrationCard({ evaluations }: { evaluations: Resource<Job[]> }) {
  const job = newest(evaluations);
  const report = useResource(
    async (signal) => (job === undefined ? null : await loadReport(job.id, signal)),
    [job?.id],
  );
  const calibration = report.value?.calibration;
  if (report.value === null || report.value === undefined || !calibration) return null;
  return (
    <Measured title="Calibration" report={report.value}>
      <Reliability of={calibration} />
    </Measured>
  );
}

function newest({ value: jobs }: Resource<Job[]>): Job | undefined {
  return jobs?.find(({ status }) => status === "succeeded");
}

function LineageCard({ prompt: { lineage, backbone, sha256 } }: { prompt: Prompt }) {
  const { dataset_id: dataset, dataset_name: name, from_checkpoint: before } = lineage;
  return (
    <section class="card">
      <h2>Origin</h2>
      <dl class="facts">
        <Fact name="Source">{lineage.source === "job" ? "tuned here" : "imported"}</Fact>
        {lineage.job_id !== null && (
          <Fact name="Job">
            <JobLink id={lineage.job_id} />
          </Fact>
        )}
        {dataset !== null && (
          <Fact name="Dataset">
            <Link href={`/datasets/${dataset}`}>
              <Named or={dataset}>{name ?? dataset}</Named>
            </Link>
          </Fact>
        )}
        {dataset === null && name !== null && (
          <Fact name="Dataset">
            <Named>{name}</Named>
          </Fact>
        )}
        {before !== null && (
          <Fact name="Continues">
            <JobLink id={before} />
          </Fact>
        )}
        {lineage.parent !== null && (
          <Fact name="Parent">
            <Link href={promptPath(lineage.parent)}>
              <code>{lineage.parent}</code>
            </Link>
          </Fact>
        )}
        <Fact name="Seed">{lineage.seed ?? "–"}</Fact>
        <Fact name="Engine">{lineage.engine_version ?? "–"}</Fact>
        <Fingerprint name="File's SHA-256" value={sha256} />
        <Fingerprint name="Backbone's SHA-256" value={backbone.fingerprint} />
        <Fingerprint name="Dataset's SHA-256" value={lineage.dataset_sha256} />
      </dl>
      {lineage.config !== null && (
        <details>
          <summary>Hyperparameters</summary>
          <pre tabIndex={0}>{JSON.stringify(lineage.config, null, 2)}</pre>
        </details>
      )}
    </section>
  );
}

function Fingerprint({ name, value }: { name: string; value: string | null }) {
  if (value === null) return null;
  return (
    <Fact name={name}>
      <code title={value}>{value.slice(0, 12)}…</code>
    </Fact>
  );
}
