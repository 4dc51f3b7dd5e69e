// A button that asks before it does what cannot be undone.
import type { ComponentChildren } from "preact";
import { useId, useRef, useState } from "preact/hooks";

interface Props {
  /** What the button does, in one word. */
  label: string;
  /** What it acts on, for screen readers. */
  name?: string;
  question: string;
  act: () => Promise<unknown>;
  class?: string;
  children?: ComponentChildren;
}

export function Confirm({ label, name, question, act, class: kind = "danger", children }: Props) {
  const dialog = useRef<HTMLDialogElement>(null);
  const [busy, setBusy] = useState(false);
  const title = useId();
  const confirm = async () => {
    setBusy(true);
    await act();
    setBusy(false);
    dialog.current?.close();
  };
  const described = name === undefined ? label : `${label} ${name}`;
  return (
    <>
      <button class={kind} aria-label={described} onClick={() => dialog.current?.showModal()}>
        {label}
      </button>
      <dialog ref={dialog} aria-labelledby={title}>
        <h2 id={title}>{question}</h2>
        {children}
        <p class="actions">
          <button class="danger" disabled={busy} onClick={confirm}>
            {label}
          </button>
          <button class="quiet" autofocus onClick={() => dialog.current?.close()}>
            Cancel
          </button>
        </p>
      </dialog>
    </>
  );
}
