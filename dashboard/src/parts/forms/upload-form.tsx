// Parts of forms that upload one file, with progress and errors beside the fields.
import type { ComponentChildren } from "preact";
import { useEffect, useId, useMemo, useRef, useState } from "preact/hooks";
import { ApiError, idempotencyKey } from "../../api/client";
import { Text } from "../basics";
import { Drop } from "./drop";
import { bytes } from "../format";
import { upload } from "./upload";

export interface Uploading {
  /** From 0 to 1 while a file is being sent. */
  share: number | null;
  error: Error | null;
  send: (form: FormData) => Promise<unknown>;
  stop: () => void;
  forget: () => void;
}

/**
 * One upload at a time. Sending the same `content` again after a lost connection does not create
 * anything twice.
 */
export function useUpload(path: string, content: readonly unknown[]): Uploading {
  const [share, setShare] = useState<number | null>(null);
  const [error, setError] = useState<Error | null>(null);
  const [sent, setSent] = useState(0);
  const headers = useMemo(idempotencyKey, [sent, ...content]);
  const controller = useRef<AbortController>();
  useEffect(() => () => controller.current?.abort(), []);
  const send = async (form: FormData) => {
    controller.current = new AbortController();
    setError(null);
    setShare(0);
    try {
      const { signal } = controller.current;
      const answer = await upload(path, form, { headers, signal, onProgress: setShare });
      setSent((n) => n + 1);
      return answer;
    } catch (failed) {
      setError(failed as Error);
      return undefined;
    } finally {
      setShare(null);
    }
  };
  const stop = () => controller.current?.abort();
  return { share, error, send, stop, forget: () => setError(null) };
}

/** The service's message about one field, found by its JSON pointer. */
export function faultOf(error: Error | null, field: string): string | undefined {
  const errors = error instanceof ApiError ? (error.problem.errors ?? []) : [];
  return errors.find(({ pointer }) => pointer === `/${field}`)?.message;
}

interface FileFieldProps {
  file: File | null;
  onFile: (file: File) => void;
  accept: string;
  what: string;
  hint: ComponentChildren;
  fault?: string | undefined;
}

export function FileField({ file, onFile, accept, what, hint, fault }: FileFieldProps) {
  const take = ([first]: File[]) => first !== undefined && onFile(first);
  return (
    <div class="whole">
      <Drop accept={accept} onFiles={take} invalid={fault !== undefined}>
        {file === null ? (
          <>
            <strong>{what}</strong>
            <br />
            <small>{hint}</small>
          </>
        ) : (
          <>
            <Text>{file.name}</Text>
            <br />
            <small>{bytes(file.size)} · choose or drop another file to replace it</small>
          </>
        )}
      </Drop>
      <Fault text={fault} />
    </div>
  );
}

interface TextFieldProps {
  label: string;
  value: string;
  onValue: (value: string) => void;
  fault?: string | undefined;
  required?: boolean;
  maxLength: number;
  pattern?: string;
  title?: string;
  placeholder?: string;
  list?: string;
}

export function TextField({ label, value, onValue, fault, ...rest }: TextFieldProps) {
  const id = useId();
  return (
    <label>
      {label}
      <input
        {...rest}
        value={value}
        autocomplete="off"
        spellcheck={false}
        aria-invalid={fault !== undefined}
        aria-describedby={id}
        onInput={(event) => onValue(event.currentTarget.value)}
      />
      <Fault id={id} text={fault} />
    </label>
  );
}

function Fault({ id, text }: { id?: string; text: string | undefined }) {
  return (
    <small class="fault" id={id} role="alert">
      {text}
    </small>
  );
}

/** The progress of an upload, or its error. */
export function UploadState({ of, size }: { of: Uploading; size: number }) {
  if (of.share !== null) {
    const percent = `${Math.floor(100 * of.share)} %`;
    return (
      <p class="progress whole" role="status">
        <progress value={of.share} aria-label="Sent" />
        <span>
          {of.share < 1 ? `${percent} of ${bytes(size)}` : "Sent; the service is checking it…"}
        </span>
        <button type="button" class="quiet" onClick={of.stop}>
          Stop
        </button>
      </p>
    );
  }
  if (of.error === null) return null;
  return (
    <p class="notice bad whole" role="alert">
      <span>{of.error.message}</span>
    </p>
  );
}
