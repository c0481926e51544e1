// A first client over HTTP in TypeScript. `chappe.d.ts` is generated from the server's OpenAPI document:
//
//   npm install openapi-fetch openapi-typescript typescript@5 @types/node
//   npx openapi-typescript http://127.0.0.1:8080/openapi.json -o chappe.d.ts

import createClient from 'openapi-fetch';
import type { paths } from './chappe.d.ts';

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

async function main(baseUrl: string): Promise<void> {
  const client = createClient<paths>({ baseUrl });
  // On loopback the server gives a token to whoever asks; elsewhere your own service signs them.
  const issued = await client.POST('/v1/dev/tokens', { body: { user: 'ada' } });
  if (!issued.data) throw new Error(issued.error.code);
  const headers = { authorization: `Bearer ${issued.data.token}` };

  const created = await client.POST('/v1/conversations', { headers, body: { kind: 'direct', with: 'bob' } });
  if (!created.data) throw new Error(created.error.code);
  const conversation = created.data.conversation.id;

  const path = { conversation };
  const body = { client_msg_id: uuid7(), body: { text: 'bonjour' } };
  const sent = await client.POST('/v1/conversations/{conversation}/messages', { headers, params: { path }, body });
  const again = await client.POST('/v1/conversations/{conversation}/messages', { headers, params: { path }, body });
  console.log(`sent as ${sent.data?.seq}, and again: ${again.data?.seq}, duplicate ${again.data?.duplicate}`);

  const page = await client.GET('/v1/conversations/{conversation}/messages', { headers, params: { path, query: { limit: 10 } } });
  for (const message of page.data?.messages ?? []) {
    console.log(`${message.seq} ${message.sender}: ${(message.body as { text?: string } | null)?.text}`);
  }

  // Every error has one shape, and its codes are known to the compiler.
  const refused = await client.GET('/v1/conversations/{conversation}', { headers, params: { path: { conversation: crypto.randomUUID() } } });
  if (refused.error?.code !== 'conversation.not_found') throw new Error('that was not refused');
  console.log(`refused: ${refused.error.code}`);
}

await main(process.argv[2] ?? 'http://127.0.0.1:8080');
