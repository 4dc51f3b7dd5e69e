// Aliases of a prompt: the version that each points to, their history, and forms that move them.
import { useId, useState } from "preact/hooks";
import { Link } from "wouter-preact";
import {
  api,
  body,
  idempotencyKey,
  type Alias,
  type AliasChange,
  type Prompt,
} from "../../api/client";
import { Table, Time } from "../basics";
import { Confirm } from "../forms/confirm";
import { decimal } from "../format";
import { ShownList, useList } from "../list";
import { attempt } from "../notices";
import { Prose } from "../prose";
import { promptPath } from "./refs";
import { Shown, type Resource } from "../resource";

const DEFAULT = "live";
const NAME = "([A-Za-z]|[0-9]+[A-Za-z._\\-])[A-Za-z0-9._\\-]*";

interface Props {
  prompt: Prompt;
  aliases: Resource<Alias[]>;
  onChange: () => void;
}

export function AliasesCard({ prompt, aliases, onChange }: Props) {
  return (
    <section class="card">
      <h2>Aliases of {prompt.name}</h2>
      <Shown of={aliases}>
        {(known) => (
          <>
            {known.length === 0 && <p class="empty">None yet.</p>}
            <ul class="aliases">
              {known.map((alias) => (
                <Item key={alias.ref} alias={alias} here={prompt} onChange={onChange} />
              ))}
            </ul>
            <PromoteForm prompt={prompt} aliases={known} onDone={onChange} />
          </>
        )}
      </Shown>
    </section>
  );
}

function Item({ alias, here, onChange }: { alias: Alias; here: Prompt; onChange: () => void }) {
  const [open, setOpen] = useState(false);
  const path = { alias: alias.ref };
  const rollBack = async () => {
    const request = { expected_prompt_id: alias.prompt_id };
    const headers = idempotencyKey();
    const done = await attempt(
      () => api.POST("/v1/aliases/{alias}/rollback", { params: { path }, body: request, headers }),
      `${alias.alias} points to the version before again.`,
    );
    if (done) onChange();
  };
  const remove = async () => {
    if (await attempt(() => api.DELETE("/v1/aliases/{alias}", { params: { path } }))) onChange();
  };
  return (
    <li>
      <div class="line">
        <span class="tag">{alias.alias}</span>
        {alias.prompt_id === here.id ? (
          <strong>v{alias.version}, this one</strong>
        ) : (
          <Link href={promptPath(`${alias.name}:${alias.version}`)}>v{alias.version}</Link>
        )}
        <small>
          <Time at={alias.updated_at} />
        </small>
        <span class="actions">
          <Confirm
            label="Roll back"
            name={alias.alias}
            class="quiet small"
            question={`Roll ${alias.ref} back?`}
            act={rollBack}
          >
            <p>It will point to the version that it had before v{alias.version}.</p>
          </Confirm>
          <Confirm
            label="Delete"
            name={`the alias ${alias.alias}`}
            class="quiet small"
            question={`Delete the alias ${alias.ref}?`}
            act={remove}
          >
            <p>Requests for {alias.ref} will fail. Its history is kept.</p>
          </Confirm>
        </span>
      </div>
      <details onToggle={(event) => setOpen(event.currentTarget.open)}>
        <summary>History of {alias.alias}</summary>
        {open && <History alias={alias} />}
      </details>
    </li>
  );
}

function History({ alias }: { alias: Alias }) {
  const changes = useList(
    async (query, signal) => {
      const params = { path: { alias: alias.ref }, query };
      const { history, next } = await body(api.GET("/v1/aliases/{alias}", { params, signal }));
      return { data: history, next };
    },
    [alias.ref, alias.seq],
  );
  return (
    <ShownList of={changes} empty="No changes yet.">
      {(known) => (
        <Table label={`History of ${alias.alias}`}>
          <thead>
            <tr>
              <th>When</th>
              <th>Change</th>
              <th>Version</th>
              <th>Reason</th>
            </tr>
          </thead>
          <tbody>
            {known.map((change) => (
              <Change key={change.seq} change={change} name={alias.name} />
            ))}
          </tbody>
        </Table>
      )}
    </ShownList>
  );
}

const ACTIONS = { set: "promoted", rollback: "rolled back", deleted: "deleted" };

function Change({ change, name }: { change: AliasChange; name: string }) {
  const { action, version, gate, comment } = change;
  return (
    <tr>
      <td>
        <Time at={change.created_at} />
      </td>
      <td>{ACTIONS[action]}</td>
      <td>
        {version === null ? "–" : <Link href={promptPath(`${name}:${version}`)}>v{version}</Link>}
      </td>
      <td class="why">
        {comment !== null && <Prose>{comment}</Prose>}
        {gate !== null && (
          <small class="gate">
            {gate.metric} {decimal(gate.found)}
            {gate.current !== null && `, before ${decimal(gate.current)}`}
          </small>
        )}
      </td>
    </tr>
  );
}

interface FormProps {
  prompt: Prompt;
  aliases: readonly Alias[];
  onDone: () => void;
}

function PromoteForm({ prompt, aliases, onDone }: FormProps) {
  const [alias, setAlias] = useState(DEFAULT);
  const [comment, setComment] = useState("");
  const [metric, setMetric] = useState("");
  const [least, setLeast] = useState("");
  const [better, setBetter] = useState("");
  const list = useId();
  const now = aliases.find((known) => known.alias === alias);
  const submit = async (event: Event) => {
    event.preventDefault();
    const request = {
      prompt_id: prompt.id,
      expected_prompt_id: now?.prompt_id ?? null, // the request fails if it has moved since
      ...(comment !== "" && { comment }),
      ...(metric !== "" && { gate: gateOf(metric, least, better) }),
    };
    const path = { alias: `${prompt.name}@${alias}` };
    const done = await attempt(
      () => api.PUT("/v1/aliases/{alias}", { params: { path }, body: request }),
      `${alias} points to version ${prompt.version}.`,
    );
    if (!done) return;
    setComment("");
    onDone();
  };
  const metrics = Object.entries(prompt.metrics).filter(([, value]) => value !== null);
  return (
    <form class="form" aria-label="Promote this version" onSubmit={submit}>
      <label>
        Alias
        <input
          value={alias}
          list={list}
          required
          maxLength={100}
          pattern={NAME}
          title="Letters, digits, dots, dashes and underscores; not only digits"
          autocomplete="off"
          onInput={(event) => setAlias(event.currentTarget.value)}
        />
        <datalist id={list}>
          {aliases.map((known) => (
            <option key={known.alias} value={known.alias} />
          ))}
        </datalist>
      </label>
      <label>
        Comment
        <input
          value={comment}
          maxLength={500}
          autocomplete="off"
          onInput={(event) => setComment(event.currentTarget.value)}
        />
      </label>
      <label>
        Only if
        <select value={metric} onChange={(event) => setMetric(event.currentTarget.value)}>
          <option value="">– no condition –</option>
          {metrics.map(([name, value]) => (
            <option key={name} value={name}>
              {name} ({decimal(value)})
            </option>
          ))}
        </select>
      </label>
      {metric !== "" && (
        <>
          <NumberField label="is at least" value={least} onValue={setLeast} />
          <NumberField label="is better by" value={better} onValue={setBetter} />
        </>
      )}
      <p class="actions whole">
        <button
          type="submit"
          disabled={now?.prompt_id === prompt.id || (metric !== "" && least + better === "")}
        >
          Promote v{prompt.version}
        </button>
        {now?.prompt_id === prompt.id && <small>{alias} already points to this version.</small>}
      </p>
    </form>
  );
}

interface NumberProps {
  label: string;
  value: string;
  onValue: (value: string) => void;
}

function NumberField({ label, value, onValue }: NumberProps) {
  return (
    <label>
      {label}
      <input
        type="number"
        step="any"
        value={value}
        placeholder="optional"
        onInput={(event) => onValue(event.currentTarget.value)}
      />
    </label>
  );
}

function gateOf(metric: string, least: string, better: string) {
  return {
    metric,
    min: least === "" ? null : Number(least),
    min_improvement: better === "" ? null : Number(better),
  };
}
export async function listAliases(name: string, signal: AbortSignal): Promise<Alias[]> {
  const params = { query: { name, limit: 100 } };
  return (await body(api.GET("/v1/aliases", { params, signal }))).data;
}
