// Asking for an API key, once the service wants one.
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
  // Not an effect after painting: the service may refuse the key before the next frame.
  useLayoutEffect(() => {
    if (wanted) dialog.current?.showModal();
    else dialog.current?.close();
  }, [wanted]);
  // Browsers report a frame later that a dialog has closed; it may be open again by then.
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
          This service wants a key. It is kept in this tab until you close it, and sent to no one
          else. <code>sharpzo keys create --name laptop</code> makes one.
        </p>
        <label>
          Key
          <input
            name="key"
            type="password"
            autocomplete="off"
            spellcheck={false}
            pattern={String.raw`\s*[\x21-\x7e]+\s*`}
            title="Letters, digits and signs of ASCII, as the service printed it"
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
