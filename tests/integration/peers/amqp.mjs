// An AMQP 1.0 broker with claims-based security, as Event Hubs and Service Bus have it: a token is put to $cbs first,
// and only then may links to other addresses be opened. rhea speaks AMQP, jsonwebtoken judges the token. What happens
// is told on standard output, one JSON object a line.
//
// Arguments: URL of the key set, issuer, certificate chain (PEM file), key (PEM file).
import { createPublicKey } from "node:crypto";
import { readFileSync } from "node:fs";
import jwt from "jsonwebtoken";
import rhea from "rhea";

const [keySetUrl, issuer, chain, key] = process.argv.slice(2);
const AUDIENCES = ["https://eventhubs.azure.net/", "https://servicebus.azure.net/"];
const tell = (fact) => console.log(JSON.stringify(fact));
const { keys } = await (await fetch(keySetUrl)).json();
const publicKey = createPublicKey({ key: keys[0], format: "jwk" });

// AMQP lets a sender leave out the last fields of a frame when they are null, as rhea does. Azure sends them all, and
// Event Hubs' client reads by position. So: the number of fields of open to close, by their codes in the standard.
const FIELDS = { 0x10: 10, 0x11: 8, 0x12: 14, 0x13: 11, 0x14: 11, 0x15: 6, 0x16: 3, 0x17: 1, 0x18: 1 };
const described = rhea.types.described_nc;
rhea.types.described_nc = (descriptor, list) => {
  const code = Number(descriptor.value);
  if (!(code in FIELDS)) return described(descriptor, list);
  const fields = Array.from({ length: FIELDS[code] }, (_, position) => list.value?.[position] ?? null);
  return described(descriptor, rhea.types.wrap_list(fields));
};

const broker = rhea.create_container({ id: "amqp-stand-in", max_frame_size: 65536 });
broker.sasl_server_mechanisms.enable_anonymous();
const authorized = new WeakSet();
const senders = new WeakMap(); // connection -> { address: sender }

function mayOpen(link, connection, address) {
  if (address.startsWith("$cbs") || authorized.has(connection)) return true;
  link.close({ condition: "amqp:unauthorized-access", description: `no token for ${address}` });
  return false;
}

broker.on("session_open", ({ session }) => {
  session.local.begin.handle_max = 255;
});

broker.on("sender_open", ({ sender, connection }) => {
  const address = sender.remote.attach.source.address;
  if (!mayOpen(sender, connection, address)) return;
  sender.set_source(sender.remote.attach.source);
  sender.set_target(sender.remote.attach.target);
  senders.set(connection, { ...senders.get(connection), [address]: sender });
});

broker.on("receiver_open", ({ receiver, connection }) => {
  const address = receiver.remote.attach.target.address;
  if (!mayOpen(receiver, connection, address)) return;
  receiver.set_source(receiver.remote.attach.source);
  receiver.set_target(receiver.remote.attach.target);
  receiver.local.attach.max_message_size = 1 << 20;
});

function judge(token) {
  try {
    const claims = jwt.verify(token, publicKey, { algorithms: ["RS256"], audience: AUDIENCES, issuer });
    return { status: 202, words: "Accepted", audience: claims.aud, oid: claims.oid };
  } catch (error) {
    return { status: 401, words: error.message };
  }
}

function reply(connection, address, message, status, words, body) {
  senders.get(connection)[address].send({
    to: message.reply_to,
    correlation_id: message.message_id,
    application_properties: { "status-code": rhea.types.wrap_int(status), "status-description": words },
    body,
  });
}

function properties(name) {
  return {
    name,
    type: "com.microsoft:eventhub",
    created_at: rhea.types.wrap_timestamp(Date.now()),
    partition_count: rhea.types.wrap_int(2),
    partition_ids: rhea.types.wrap_array(["0", "1"], 0xa1),
    georeplication_factor: rhea.types.wrap_int(1),
  };
}

broker.on("message", ({ message, receiver, connection }) => {
  const address = receiver.target.address;
  if (address === "$cbs") {
    const { status, words, ...facts } = judge(message.body);
    if (status === 202) authorized.add(connection);
    tell({ put: message.application_properties.name, status, words, ...facts });
    reply(connection, "$cbs", message, status, words);
  } else if (address === "$management") {
    reply(connection, "$management", message, 200, "OK", properties(message.application_properties.name));
  } else {
    tell({ message: address });
  }
});

const listening = broker.listen({
  max_frame_size: 65536, transport: "tls", host: "127.0.0.1", port: 0, cert: readFileSync(chain), key: readFileSync(key),
});
listening.on("listening", () => tell({ port: listening.address().port }));
