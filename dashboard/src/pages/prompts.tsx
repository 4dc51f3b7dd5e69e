// All prompts, grouped by name, and a form that imports one.
import { useState } from "preact/hooks";
import { Link } from "wouter-preact";
import { api, body, type Prompt } from "../api/client";
import { Basis, Share, Table, Text, Time } from "../parts/basics";
import { count, points } from "../parts/format";
import { ShownList, useList } from "../parts/list";
import { notify } from "../parts/notices";
import { backboneName, byName } from "../parts/prompts/prompt";
import { accuracies, promptPath, tryPath } from "../parts/prompts/refs";
import { useTitle } from "../parts/title";
import { FileField, TextField, UploadState, faultOf, useUpload } from "../parts/forms/upload-form";

const NAME = "[A-Za-z0-9][A-Za-z0-9._\\-]*";

export function PromptsPage() {
  useTitle("Prompts");
  const list = useList(
    (query, signal) => body(api.GET("/v1/prompts", { params: { query }, signal })),
    [],
  );
  return (
    <>
      <div class="title">
        <h1>Prompts</h1>
      </div>
      <section class="card" aria-label="All prompts">
        <ShownList of={list} empty={<Nothing />}>
          {(prompts) => <Prompts prompts={prompts} />}
        </ShownList>
      </section>
      <ImportCard onDone={list.reload} />
    </>
  );
}

function Nothing() {
  return (
    <>
      No prompt yet. <Link href="/new-job">Tune one</Link>, or import one below.
    </>
  );
}

function Prompts({ prompts }: { prompts: Prompt[] }) {
  return (
    <Table label="Prompts" stack>
      <thead>
        <tr>
          <th>Version</th>
          <th>Aliases</th>
          <th class="number">Classes</th>
          <th>Zero-shot</th>
          <th>Tuned</th>
          <th class="number">Gain</th>
          <th>Backbone</th>
          <th>Created</th>
          <th />
        </tr>
      </thead>
      {byName(prompts).map(([name, versions]) => (
        <tbody key={name}>
          <tr class="group">
            <th colSpan={9} scope="rowgroup">
              <Link href={promptPath(name)}>
                <Text>{name}</Text>
              </Link>
            </th>
          </tr>
          {versions.map((prompt) => (
            <Row key={prompt.id} prompt={prompt} />
          ))}
        </tbody>
      ))}
    </Table>
  );
}

function Row({ prompt }: { prompt: Prompt }) {
  const { before, after, split, images } = accuracies(prompt);
  return (
    <tr>
      <td class="head">
        <Link href={promptPath(`${prompt.name}:${prompt.version}`)}>v{prompt.version}</Link>
      </td>
      <td>
        <span class="tags">
          {prompt.aliases.map((alias) => (
            <Link key={alias} class="tag" href={promptPath(`${prompt.name}@${alias}`)}>
              {alias}
            </Link>
          ))}
          {prompt.pinned && <span class="tag">pinned</span>}
        </span>
      </td>
      <td class="number" data-label="Classes">
        {count(prompt.classes.length)}
      </td>
      <td data-label="Zero-shot">
        <Share of={before} kind="before" />
        <Basis accuracy={before} images={images} split={split} />
      </td>
      <td data-label="Tuned">
        <Share of={after} kind="after" />
        <Basis accuracy={after} images={images} split={split} />
      </td>
      <td class="number" data-label="Gain">
        {points(before, after)}
      </td>
      <td data-label="Backbone">{backboneName(prompt.backbone)}</td>
      <td data-label="Created">
        <Time at={prompt.created_at} />
      </td>
      <td class="number corner">
        <Link href={tryPath(`${prompt.name}:${prompt.version}`)}>Try</Link>
      </td>
    </tr>
  );
}

function ImportCard({ onDone }: { onDone: () => void }) {
  const [file, setFile] = useState<File | null>(null);
  const [name, setName] = useState("");
  const uploading = useUpload("/v1/prompts", [file, name]);
  const take = (chosen: File) => {
    uploading.forget();
    setFile(chosen);
  };
  const submit = async (event: Event) => {
    event.preventDefault();
    if (file === null) return;
    const form = new FormData();
    if (name !== "") form.append("name", name);
    form.append("file", file);
    const prompt = (await uploading.send(form)) as Prompt | undefined;
    if (prompt === undefined) return;
    notify("good", `Imported as ${prompt.name}, version ${prompt.version}.`);
    setFile(null);
    setName("");
    onDone();
  };
  return (
    <form class="card form" aria-label="Import a prompt" onSubmit={submit}>
      <h2 class="whole">Import</h2>
      <FileField
        file={file}
        onFile={take}
        accept=".safetensors"
        what="Drop a tuned prompt here, or choose one"
        hint=".safetensors: downloaded from a service, or written by sharpzo tune or the library"
        fault={faultOf(uploading.error, "file")}
      />
      <TextField
        label="Name"
        placeholder="optional"
        value={name}
        onValue={setName}
        fault={faultOf(uploading.error, "name")}
        maxLength={100}
        pattern={NAME}
        title="Letters, digits, dots, dashes and underscores; the prompt becomes the next version of that name"
      />
      <p class="actions">
        <button type="submit" disabled={file === null || uploading.share !== null}>
          Import
        </button>
      </p>
      <UploadState of={uploading} size={file?.size ?? 0} />
    </form>
  );
}
