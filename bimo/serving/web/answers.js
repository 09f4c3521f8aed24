// Answers of a model as they come: one shape for models that know conversations and for those that only continue texts.

import { stream } from "./api.js";
import { chosenModel, knowsChat } from "./models.js";

const TOP = 5; // alternatives to each token

/**
 * What comes, piece by piece: {text, tokens, finish, bimo}, each where there is one.
 * `turns` are {role, content}; `parameters` go into the request as they are.
 */
export async function* answers(turns, parameters, withTokens, signal) {
  const body = { model: chosenModel(), stream: true, ...parameters };
  const chat = knowsChat();
  if (chat) Object.assign(body, { messages: turns }, withTokens && { logprobs: true, top_logprobs: TOP });
  else Object.assign(body, { prompt: turns.map(({ content }) => content).join("") }, withTokens && { logprobs: TOP });
  for await (const chunk of stream(chat ? "/v1/chat/completions" : "/v1/completions", body, signal)) {
    const choice = chunk.choices?.[0];
    yield {
      text: (chat ? choice?.delta?.content : choice?.text) ?? "",
      tokens: chat ? choice?.logprobs?.content : tokensOf(choice?.logprobs),
      finish: choice?.finish_reason,
      bimo: chunk.bimo,
    };
  }
}

/** The older form of reported tokens as the newer one. */
function tokensOf(logprobs) {
  return logprobs?.tokens.map((token, number) => ({
    token,
    logprob: logprobs.token_logprobs[number],
    bytes: logprobs.bytes?.[number],
    top_logprobs: Object.entries(logprobs.top_logprobs[number]).map(([other, logprob]) => ({ token: other, logprob })),
  }));
}
