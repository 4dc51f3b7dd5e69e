// Uploads by XMLHttpRequest: fetch does not report the progress of what it sends.
import { failure } from "../../api/client";
import { keyHeaders, keyOf } from "../../api/key";

interface Options {
  headers: Record<string, string>;
  signal: AbortSignal;
  /** Receives the fraction sent so far. */
  onProgress: (share: number) => void;
}

/** Post a form and return the JSON; throws ApiError if the service refuses, Error without an answer. */
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
    request.onerror = () => reject(new Error("The connection was lost (send it again)"));
    request.onabort = () => reject(new Error("Upload cancelled"));
    options.signal.addEventListener("abort", () => request.abort(), { once: true });
    request.send(form);
  });
}
