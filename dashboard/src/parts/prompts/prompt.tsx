// Used by the list and the pages of prompts.
import { api, type Prompt } from "../../api/client";
import { Confirm } from "../forms/confirm";
import { attempt } from "../notices";

export function backboneName({ name, pretrained }: Prompt["backbone"]): string {
  return pretrained === null ? name : `${name} · ${pretrained}`;
}

/** The versions of each name, in the order in which the names first appear. */
export function byName(prompts: readonly Prompt[]): [name: string, versions: Prompt[]][] {
  const groups = new Map<string, Prompt[]>();
  for (const prompt of prompts) {
    const group = groups.get(prompt.name);
    if (group === undefined) groups.set(prompt.name, [prompt]);
    else group.push(prompt);
  }
  return [...groups];
}

interface Props {
  prompt: Prompt;
  onDone: () => void;
}

export function PinButton({ prompt: { id, pinned }, onDone }: Props) {
  const params = { path: { ref: id } };
  const change = async () => {
    const done = await attempt(
      () =>
        pinned
          ? api.DELETE("/v1/prompts/{ref}/pin", { params })
          : api.PUT("/v1/prompts/{ref}/pin", { params }),
      pinned ? "Unpinned." : "Pinned: it stays in memory.",
    );
    if (done) onDone();
  };
  const title = pinned
    ? "Let it leave memory when it is not used"
    : "Keep it in memory in every API process";
  return (
    <button class="quiet" title={title} onClick={change}>
      {pinned ? "Unpin" : "Pin"}
    </button>
  );
}

export function DeletePrompt({ prompt: { id, name, version }, onDone }: Props) {
  const remove = async () => {
    const params = { path: { ref: id } };
    if (await attempt(() => api.DELETE("/v1/prompts/{ref}", { params }))) onDone();
  };
  return (
    <Confirm
      label="Delete"
      name={`${name} version ${version}`}
      question={`Delete version ${version} of ${name}?`}
      act={remove}
    >
      <p>Its file is deleted permanently. A prompt that an alias points to cannot be deleted.</p>
    </Confirm>
  );
}
