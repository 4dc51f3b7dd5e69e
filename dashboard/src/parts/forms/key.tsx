// Asks for an API key once the service requires one.
import { useLayoutEffect, useRef } from "preact/hooks";
import { key, keyWanted, takeKey } from "../../api/key";

export function KeyButton() {
  if (key.value === null) return null;
  const change = () => (keyWanted.value = true);
  return (
    <button class="plain" title="Change the API key" onClick={change}>
      Key {key.value.slice(0, 8)}…
    </button>
  );
}

export function KeyDialog() {
  const dialog = useRef<HTMLDialogElement>(null);
  const wanted = keyWanted.value;
  // A layout effect: the service may refuse the key before the next frame.
  useLayoutEffect(() => {
    if (wanted) dialog.current?.showModal();
    else dialog.current?.close();
  }, [wanted]);
  // The event arrives a frame after a dialog has closed; by then it may be open again.
  const closed = () => {
    if (dialog.current?.open === false) keyWanted.value = false;
  };
  const submit = (event: SubmitEvent) => {
    event.preventDefault();
    const text = new FormData(event.currentTarget as HTMLFormElement).get("key");
    if (typeof text === "string" && text.trim() !== "") takeKey(text.trim());
  };
  return (
    <dialog ref={dialog} aria-labelledby="key-title" onClose={closed}>
      <form onSubmit={submit}>
        <h2 id="key-title">API key</h2>
        <p>
          This service requires a key. It is kept in this tab until you close it and sent only to
          this service. <code>sharpzo keys create --name laptop</code> creates one.
        </p>
        <label>
          Key
          <input
            name="key"
            type="password"
            autocomplete="off"
            spellcheck={false}
            pattern={String.raw`\s*[\x21-\x7e]+\s*`}
            title="ASCII characters, exactly as the service printed them"
            required
          />
        </label>
        <p class="actions">
          <button type="submit">Use this key</button>
          <button type="button" class="quiet" onClick={() => (keyWanted.value = false)}>
            Cancel
          </button>
        </p>
      </form>
    </dialog>
  );
}
