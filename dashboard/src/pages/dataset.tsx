// One dataset: its contents, the findings of the check, and a look at its images.
import { Link, useLocation } from "wouter-preact";
import { api, body, type Dataset } from "../api/client";
import { Fact, Time } from "../parts/basics";
import { ContactSheet } from "../parts/datasets/contact-sheet";
import { DatasetStatus, DeleteDataset } from "../parts/datasets/dataset";
import { bytes, count, isolated } from "../parts/format";
import { ClassCounts, Findings, Sizes, Unreadable, preflightOf } from "../parts/datasets/preflight";
import { Named } from "../parts/named";
import { Prose } from "../parts/prose";
import { Shown, useResource } from "../parts/resource";
import { useTitle } from "../parts/title";

const SECONDS = 2; // between refreshes while it is processed

export function DatasetPage({ id }: { id: string }) {
  const dataset = useResource(
    (signal) =>
      body(api.GET("/v1/datasets/{dataset_id}", { params: { path: { dataset_id: id } }, signal })),
    [id],
    (known) => (known?.status === "processing" ? SECONDS : undefined),
  );
  useTitle(dataset.value && isolated(dataset.value.name));
  return (
    <>
      <p class="crumb">
        <Link href="/datasets">Datasets</Link>
      </p>
      <Shown of={dataset}>{(known) => <Content dataset={known} />}</Shown>
    </>
  );
}

function Content({ dataset }: { dataset: Dataset }) {
  const [, navigate] = useLocation();
  const ready = dataset.status === "ready";
  const report = preflightOf(dataset.report);
  return (
    <>
      <div class="title">
        <h1>
          <Named or={dataset.id}>{dataset.name}</Named>
        </h1>
        <DatasetStatus dataset={dataset} />
        <p class="actions">
          {ready && dataset.labelled && (
            <Link class="button" href={`/new-job/${dataset.id}`}>
              Tune on this
            </Link>
          )}
          <DeleteDataset dataset={dataset} onDeleted={() => navigate("/datasets")} />
        </p>
      </div>
      {dataset.error !== null && (
        <p class="notice bad" role="alert">
          <span>
            <Prose>{dataset.error.message}</Prose> <code>{dataset.error.code}</code>
          </span>
        </p>
      )}
      {dataset.status === "processing" && (
        <p class="waiting" role="status">
          Reading and checking its images…
        </p>
      )}
      <Facts dataset={dataset} size={report?.bytes} />
      {report !== null && <Findings report={report} />}
      <div class="columns">
        {report !== null && <ClassCounts report={report} />}
        <div>
          {ready && <ContactSheet id={dataset.id} name={dataset.name} />}
          {report !== null && <Sizes report={report} />}
          {report !== null && <Unreadable report={report} />}
        </div>
      </div>
    </>
  );
}

function Facts({ dataset, size }: { dataset: Dataset; size: number | undefined }) {
  const { labelled, sha256, created_at: created } = dataset;
  return (
    <section class="card" aria-label="Facts">
      <dl class="facts">
        {dataset.status === "ready" && <Counts dataset={dataset} />}
        {size !== undefined && <Fact name="Size">{bytes(size)}</Fact>}
        <Fact name="Labels">{labelled ? "by folder or list" : "none: can only be classified"}</Fact>
        <Fact name="Created">
          <Time at={created} />
        </Fact>
        <Fact name="Id">
          <code class="id">{dataset.id}</code>
        </Fact>
        {sha256 !== null && (
          <Fact name="SHA-256">
            <code title={sha256}>{sha256.slice(0, 16)}…</code>
          </Fact>
        )}
      </dl>
    </section>
  );
}

function Counts({ dataset: { labelled, classes, images, splits } }: { dataset: Dataset }) {
  return (
    <>
      <Fact name="Images">
        <span class="large">{count(images)}</span>
      </Fact>
      {labelled && (
        <>
          <Fact name="Classes">
            <span class="large">{count(classes.length)}</span>
          </Fact>
          {(["train", "val", "test"] as const).map((split) => (
            <Fact key={split} name={SPLIT_NAMES[split]}>
              <span class="large">{count(splits[split])}</span>
            </Fact>
          ))}
        </>
      )}
    </>
  );
}

const SPLIT_NAMES = { train: "Training", val: "Validation", test: "Test" };
