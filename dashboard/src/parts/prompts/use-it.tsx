// How other programs use a prompt: files to download, and code that calls it.
import { useState } from "preact/hooks";
import { download, type Prompt } from "../../api/client";
import { key } from "../../api/key";
import { attempt } from "../notices";

const FILES = [
  ["safetensors", "download", "the prompt: for the library, or to import into another service"],
  ["npy", "export?format=npy", "one matrix: from image embeddings to logits"],
  ["onnx", "export?format=onnx", "a model: from image embeddings to probabilities"],
] as const;

export function UseItCard({ prompt, reference }: { prompt: Prompt; reference: string }) {
  return (
    <section class="card">
      <h2>Use it</h2>
      <Snippets reference={reference} />
      <h3>Files</h3>
      <ul class="files">
        {FILES.map(([suffix, path, what]) => (
          <li key={suffix}>
            <button
              class="quiet small"
              onClick={() =>
                attempt(() =>
                  download(
                    `/v1/prompts/${prompt.id}/${path}`,
                    `${prompt.name}-v${prompt.version}.${suffix}`,
                  ),
                )
              }
            >
              .{suffix}
            </button>
            <small>{what}</small>
          </li>
        ))}
      </ul>
    </section>
  );
}

function Snippets({ reference }: { reference: string }) {
  const secured = key.value !== null;
  const authorization = secured ? ` \\\n  -H "Authorization: Bearer $SHARPZO_API_KEY"` : "";
  const curl = `curl -F images=@photo.jpg${authorization} \\
  '${location.origin}/v1/prompts/${reference}/classify?top_k=3'`;
  const keyed = secured ? `, api_key=os.environ["SHARPZO_API_KEY"]` : "";
  const python = `${secured ? "import os\n" : ""}from sharpzo_client import Client

client = Client("${location.origin}"${keyed})
answer = client.prompts.classify("${reference}", ["photo.jpg"], top_k=3)`;
  return (
    <>
      <Snippet title="Shell" text={curl} />
      <Snippet title="Python" text={python} />
    </>
  );
}

function Snippet({ title, text }: { title: string; text: string }) {
  const [copied, setCopied] = useState(false);
  const copy = async () => {
    await navigator.clipboard.writeText(text);
    setCopied(true);
  };
  return (
    <figure class="snippet">
      <figcaption>
        <h3>{title}</h3>
        {isSecureContext && (
          <button class="plain" onClick={() => attempt(copy)}>
            <span aria-live="polite">{copied ? "Copied" : "Copy"}</span>
          </button>
        )}
      </figcaption>
      <pre tabIndex={0}>{text}</pre>
    </figure>
  );
}
