// Sending files with word of how far it is, which fetch does not tell.
import { failure } from "../../api/client";
import { keyHeaders, keyOf } from "../../api/key";

interface Options {
  headers: Record<string, string>;
  signal: AbortSignal;
  /** With the share that has been sent, from 0 to 1. */
  onProgress: (share: number) => void;
}

/** Post a form; the answer's JSON. Throws ApiError where the service says no, and Error without it. */
export function upload(path: string, form: FormData, options: Options): Promise<unknown> {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", path);
    const headers = new Headers({ ...keyHeaders(), ...options.headers });
    headers.forEach((value, name) => request.setRequestHeader(name, value));
    request.upload.onprogress = ({ loaded, total }) => options.onProgress(loaded / total);
    request.onload = () => {
      const { status, responseText } = request;
      if (status < 300) resolve(JSON.parse(responseText));
      else void failure(new Response(responseText, { status }), keyOf(headers)).then(reject);
    };
    request.onerror = () => reject(new Error("The connection broke off. Send it again."));
    request.onabort = () => reject(new Error("Not sent: you stopped it."));
    options.signal.addEventListener("abort", () => request.abort(), { once: true });
    request.send(form);
  });
}
