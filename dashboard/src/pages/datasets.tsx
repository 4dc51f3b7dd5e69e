// All datasets, and a form that uploads one.
import { useState } from "preact/hooks";
import { Link } from "wouter-preact";
import { api, body, type Dataset } from "../api/client";
import { Table, Time } from "../parts/basics";
import { DatasetStatus, DeleteDataset } from "../parts/datasets/dataset";
import { count } from "../parts/format";
import { ShownList, useList } from "../parts/list";
import { Named } from "../parts/named";
import { notify } from "../parts/notices";
import { useTitle } from "../parts/title";
import { FileField, TextField, UploadState, faultOf, useUpload } from "../parts/forms/upload-form";

const SECONDS = 2; // between refreshes while one is processed
const ARCHIVES = ".zip,.tar,.tgz,.tar.gz,application/zip,application/x-tar,application/gzip";

export function DatasetsPage() {
  useTitle("Datasets");
  const list = useList(
    (query, signal) => body(api.GET("/v1/datasets", { params: { query }, signal })),
    [],
    (shown) => (shown?.items.some(({ status }) => status === "processing") ? SECONDS : undefined),
  );
  return (
    <>
      <div class="title">
        <h1>Datasets</h1>
      </div>
      <UploadCard onDone={list.reload} />
      <section class="card" aria-label="All datasets">
        <ShownList of={list} empty="No dataset yet. Drop an archive of images above.">
          {(datasets) => <Datasets datasets={datasets} onDeleted={list.reload} />}
        </ShownList>
      </section>
    </>
  );
}

function Datasets({ datasets, onDeleted }: { datasets: Dataset[]; onDeleted: () => void }) {
  return (
    <Table label="Datasets" stack>
      <thead>
        <tr>
          <th>Name</th>
          <th>Status</th>
          <th class="number">Classes</th>
          <th class="number">Train</th>
          <th class="number">Val</th>
          <th class="number">Test</th>
          <th>Created</th>
          <th />
        </tr>
      </thead>
      <tbody>
        {datasets.map((dataset) => (
          <Row key={dataset.id} dataset={dataset} onDeleted={onDeleted} />
        ))}
      </tbody>
    </Table>
  );
}

function Row({ dataset, onDeleted }: { dataset: Dataset; onDeleted: () => void }) {
  const { id, name, labelled, classes, images, splits, status } = dataset;
  const known = status === "ready";
  const figures = known ? "number" : "number wide-only"; // not known yet, or never
  return (
    <tr>
      <td class="head">
        <Link href={`/datasets/${id}`}>
          <Named or={id}>{name}</Named>
        </Link>
      </td>
      <td data-label="Status">
        <DatasetStatus dataset={dataset} />
      </td>
      {labelled ? (
        <>
          <td class={figures} data-label="Classes">
            {count(known ? classes.length : null)}
          </td>
          <td class={figures} data-label="Train">
            {count(known ? splits.train : null)}
          </td>
          <td class={figures} data-label="Val">
            {count(known ? splits.val : null)}
          </td>
          <td class={figures} data-label="Test">
            {count(known ? splits.test : null)}
          </td>
        </>
      ) : (
        <td class="number" colSpan={4} data-label="Images">
          <span>
            {known && `${count(images)} `}
            <span class="tag">unlabelled</span>
          </span>
        </td>
      )}
      <td data-label="Created">
        <Time at={dataset.created_at} />
      </td>
      <td class="number corner">
        <DeleteDataset dataset={dataset} class="plain" onDeleted={onDeleted} />
      </td>
    </tr>
  );
}

function UploadCard({ onDone }: { onDone: () => void }) {
  const [file, setFile] = useState<File | null>(null);
  const [name, setName] = useState("");
  const [unlabelled, setUnlabelled] = useState(false);
  const uploading = useUpload("/v1/datasets", [file, name, unlabelled]);
  const take = (chosen: File) => {
    uploading.forget();
    setFile(chosen);
    if (name === "" || name === bareName(file)) setName(bareName(chosen));
  };
  const submit = async (event: Event) => {
    event.preventDefault();
    if (file === null) return;
    const form = new FormData();
    form.append("name", name);
    if (unlabelled) form.append("unlabelled", "true");
    form.append("file", file);
    if ((await uploading.send(form)) === undefined) return;
    notify("good", "Uploaded; the service is reading its images.");
    setFile(null);
    setName("");
    onDone();
  };
  return (
    <form class="card form" aria-label="Upload a dataset" onSubmit={submit}>
      <FileField
        file={file}
        onFile={take}
        accept={ARCHIVES}
        what="Drop an archive here, or choose one"
        hint=".zip, .tar or .tar.gz with a folder of images per class, optionally in train/, val/ and test/"
        fault={faultOf(uploading.error, "file")}
      />
      <TextField
        label="Name"
        value={name}
        onValue={setName}
        fault={faultOf(uploading.error, "name")}
        required
        maxLength={200}
      />
      <label class="check" title="For classification only; folders do not matter">
        <input
          type="checkbox"
          checked={unlabelled}
          onChange={(event) => setUnlabelled(event.currentTarget.checked)}
        />
        Images without labels
      </label>
      <p class="actions">
        <button type="submit" disabled={file === null || uploading.share !== null}>
          Upload
        </button>
      </p>
      <UploadState of={uploading} size={file?.size ?? 0} />
    </form>
  );
}

function bareName(file: File | null): string {
  return file?.name.replace(/\.(zip|tar|tgz|tar\.gz)$/i, "") ?? "";
}
