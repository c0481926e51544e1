// A first client over a WebSocket in TypeScript: it connects, hears what happens, and says something. What it says and hears has the
// types of the OpenAPI document. (In a browser, and from Node 22 on, WebSocket is there without a package.)
//
//   npm install ws @types/ws openapi-typescript typescript@5 @types/node
//   npx openapi-typescript http://127.0.0.1:8080/openapi.json -o chappe.d.ts

import { WebSocket } from 'ws';
import type { components } from './chappe.d.ts';

type Event = components['schemas']['Event'];
type Refusal = components['schemas']['Error'];
type Frame = { id?: number; ok?: any; error?: Refusal; hello?: { generation: string } } & Omit<Partial<Event>, 'id'>;

/** A message's id, made before the first attempt: sent twice, it is one message. */
function uuid7(): string {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  let now = Date.now();
  for (let i = 5; i >= 0; i--) { bytes[i] = now % 256; now = Math.floor(now / 256); }
  bytes[6] = bytes[6]! & 15 | 0x70;
  bytes[8] = bytes[8]! & 63 | 128;
  const hex = [...bytes].map(byte => byte.toString(16).padStart(2, '0')).join('');
  return hex.replace(/(.{8})(.{4})(.{4})(.{4})(.{12})/, '$1-$2-$3-$4-$5');
}

class Chappe {
  #socket: WebSocket;
  #last = 0;
  #asked = new Map<number, { resolve: (ok: any) => void; reject: (refusal: Refusal) => void }>();
  /** What nobody has asked for: hello, events, heartbeats. */
  heard: (frame: Frame) => void = () => {};

  constructor(url: string) {
    this.#socket = new WebSocket(`${url.replace('http', 'ws')}/v1/ws`, 'chappe.v1.json');
    this.#socket.on('message', data => {
      // Several frames may share one message.
      for (const line of String(data).split('\n')) this.#frame(JSON.parse(line) as Frame);
    });
  }

  #frame(frame: Frame): void {
    // An event's id is its message's, a text.
    const asked = frame.id === undefined ? undefined : this.#asked.get(frame.id);
    if (!asked) return this.heard(frame);
    this.#asked.delete(frame.id!);
    if (frame.error) asked.reject(frame.error); else asked.resolve(frame.ok);
  }

  /** The answer to a request. */
  ask(operation: string, request: object): Promise<any> {
    const id = ++this.#last;
    this.#socket.send(JSON.stringify({ id, [operation]: request }));
    return new Promise((resolve, reject) => this.#asked.set(id, { resolve, reject }));
  }

  close(): void { this.#socket.close(); }
}

async function main(url: string): Promise<void> {
  // On loopback the server gives a token to whoever asks; elsewhere your own service signs them.
  const body = JSON.stringify({ user: 'ada' });
  const issued = await fetch(`${url}/v1/dev/tokens`, { method: 'POST', headers: { 'content-type': 'application/json' }, body });
  const { token } = await issued.json() as { token: string };

  const chappe = new Chappe(url);
  const hello = await new Promise<Frame>(resolve => { chappe.heard = resolve; });
  console.log(`the server says hello; positions are of generation ${hello.hello?.generation ? 'known' : 'unknown'}`);
  const live = new Promise<void>(resolve => {
    chappe.heard = frame => {
      if (frame.event !== 'message.new') return;
      console.log(`${frame.seq} ${frame.sender}: ${(frame.data?.body as { text?: string } | null)?.text}`);
      resolve();
    };
  });
  await chappe.ask('connect', { token, device: 'example' });
  const { conversation } = await chappe.ask('conversation.create', { kind: 'direct', with: 'bob' });
  const message = { conversation: conversation.id, client_msg_id: uuid7(), body: { text: 'bonjour' } };
  const sent = await chappe.ask('message.send', message);
  console.log(`sent as ${sent.seq}`);
  // One's own messages come back as events, before or after the answer.
  await live;
  const refusal: Refusal = await chappe.ask('conversation.get', { conversation: crypto.randomUUID() }).catch(refusal => refusal);
  console.log(`refused: ${refusal.code}`);
  chappe.close();
}

await main(process.argv[2] ?? 'http://127.0.0.1:8080');
