// A first client over gRPC in TypeScript, live. Its types are generated from the proto files, which it reads when it starts:
//
//   npm install @grpc/grpc-js @grpc/proto-loader typescript@5 @types/node
//   npx proto-loader-gen-types --keepCase --longs=Number --enums=String --oneofs --grpcLib=@grpc/grpc-js --importFileExtension=.js \
//     -I schema/proto -O generated chappe/v1/chappe.proto chappe/v1/realtime.proto
//   cp -r schema/proto .

import * as grpc from '@grpc/grpc-js';
import { loadSync } from '@grpc/proto-loader';
import type { ProtoGrpcType } from './generated/realtime.js';
import type { ConversationCreateResponse__Output as Created } from './generated/chappe/v1/ConversationCreateResponse.js';
import type { ConversationGetResponse__Output as Got } from './generated/chappe/v1/ConversationGetResponse.js';
import type { MessageSendResponse__Output as Sent } from './generated/chappe/v1/MessageSendResponse.js';
import type { ServerFrame__Output } from './generated/chappe/v1/ServerFrame.js';

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

const files = ['chappe/v1/chappe.proto', 'chappe/v1/realtime.proto'];
const definition = loadSync(files, { keepCase: true, longs: Number, enums: String, oneofs: true, includeDirs: ['proto'] });
const { chappe: { v1 } } = grpc.loadPackageDefinition(definition) as unknown as ProtoGrpcType;

/** A call with a callback, as a promise. */
function asked<T>(call: (answered: grpc.requestCallback<T>) => unknown): Promise<T> {
  return new Promise((resolve, reject) => call((error, answer) => error ? reject(error) : resolve(answer!)));
}

async function main(url: string): Promise<void> {
  // On loopback the server gives a token to whoever asks; elsewhere your own service signs them.
  const body = JSON.stringify({ user: 'ada' });
  const issued = await fetch(`${url}/v1/dev/tokens`, { method: 'POST', headers: { 'content-type': 'application/json' }, body });
  const { token } = await issued.json() as { token: string };
  const metadata = new grpc.Metadata();
  metadata.set('authorization', `Bearer ${token}`);
  const address = url.replace('http://', '');
  const credentials = grpc.credentials.createInsecure();

  // Live: the WebSocket's frames on a stream.
  const stream = new v1.Realtime(address, credentials).Connect(metadata);
  const frames = stream[Symbol.asyncIterator]() as AsyncIterator<ServerFrame__Output>;
  console.log(`the server says ${(await frames.next()).value.payload}`);
  stream.write({ id: 1, connect: {} });
  console.log(`connected as ${(await frames.next()).value.connected?.user}`);

  // Everything else may be asked on the stream too, or with calls of their own.
  const conversations = new v1.Conversations(address, credentials);
  const messages = new v1.Messages(address, credentials);
  const deadline = () => ({ deadline: Date.now() + 10_000 });
  const direct = { kind: 'CONVERSATION_KIND_DIRECT', with: 'bob' } as const;
  const created = await asked<Created>(answered => conversations.Create(direct, metadata, deadline(), answered));
  const conversation = created.conversation!.id;
  const message = { conversation, client_msg_id: uuid7(), body: '{"text":"bonjour"}' };
  const sent = await asked<Sent>(answered => messages.Send(message, metadata, deadline(), answered));
  console.log(`sent as ${sent.seq}`);
  for (;;) {
    const { event } = (await frames.next()).value;
    if (event?.event !== 'message.new') continue;
    console.log(`${event.seq} ${event.sender}: ${JSON.parse(event.data?.body ?? '{}').text}`);
    break;
  }

  // A refusal has a status, and one error object in its details.
  const other = { conversation: crypto.randomUUID() };
  const got = asked<Got>(answered => conversations.Get(other, metadata, deadline(), answered));
  const code = await got.then(() => grpc.status.OK, (refusal: grpc.ServiceError) => refusal.code);
  console.log(`refused: ${grpc.status[code]}`);
  stream.cancel();
}

await main(process.argv[2] ?? 'http://127.0.0.1:8080');
