// A picture of a few images of each class; a click enlarges it.
import { useEffect, useRef, useState } from "preact/hooks";
import { ApiError, fetchRaw } from "../../api/client";
import { isolated } from "../format";
import { Shown, useResource } from "../resource";

export function ContactSheet({ id, name }: { id: string; name: string }) {
  const sheet = useResource((signal) => load(id, signal), [id]);
  if (sheet.value === null) return null;
  return (
    <section class="card">
      <h2>Contact sheet</h2>
      <Shown of={sheet}>{(blob) => blob !== null && <Sheet blob={blob} name={name} />}</Shown>
    </section>
  );
}

async function load(id: string, signal: AbortSignal): Promise<Blob | null> {
  try {
    return await (await fetchRaw(`/v1/datasets/${id}/contact-sheet`, { signal })).blob();
  } catch (error) {
    if (error instanceof ApiError && error.status === 404) return null; // older datasets have none
    throw error;
  }
}

function Sheet({ blob, name }: { blob: Blob; name: string }) {
  const url = useObjectUrl(blob);
  const dialog = useRef<HTMLDialogElement>(null);
  const alt = `A few images of each class of ${isolated(name)}`;
  if (url === undefined) return null;
  return (
    <>
      <button class="sheet" title="Enlarge" onClick={() => dialog.current?.showModal()}>
        <img src={url} alt={alt} />
      </button>
      <dialog ref={dialog} class="large" aria-label="Contact sheet">
        <p class="actions">
          <button class="quiet" onClick={() => dialog.current?.close()}>
            Close
          </button>
        </p>
        <div class="scroll" tabIndex={0} role="region" aria-label="Picture">
          <img src={url} alt={alt} />
        </div>
      </dialog>
    </>
  );
}

/** A URL of a blob, valid while the component is shown. */
export function useObjectUrl(blob: Blob): string | undefined {
  const [url, setUrl] = useState<string>();
  useEffect(() => {
    const made = URL.createObjectURL(blob);
    setUrl(made);
    return () => URL.revokeObjectURL(made);
  }, [blob]);
  return url;
}
