// Sends the calls in the JSON on stdin with Node's fetch, and prints the responses as JSON.
const calls = JSON.parse(await new Response(process.stdin).text());
const responses = [];
for (const { method, url, headers, body, field } of calls) {
  let content = Buffer.from(body, "base64");
  if (field) {
    const form = new FormData();
    form.append(field, new Blob([content], { type: "image/png" }), "ship.png");
    content = form;
  }
  const response = await fetch(url, { method, headers, body: content });
  responses.push({ status: response.status, body: await response.text() });
}
console.log(JSON.stringify(responses));
