// The phases of a stop, under one budget of time.
//
// 1. Until the grace is over: no new work. What runs goes on, so do open streams, and a client that
//    has not yet fetched its result still can.
//    Jobs that wait in a durable store stay there for the next start, and their watchers are told.
// 2. Then everything is ended: kept for the next start where the store is durable, cancelled else.
//    Watchers see it.
// 3. Then gRPC closes, which is the server's business.
#ifndef DENOISED_SERVER_DRAIN_H_
#define DENOISED_SERVER_DRAIN_H_

#include <chrono>

#include "runtime/engine.h"
#include "runtime/log.h"
#include "server/open_calls.h"

namespace denoised {

// A client that knows that its job is done comes for the result within this time; a result that
// nobody wanted for longer holds up no stop.
inline constexpr std::chrono::seconds kResultWait{5};

// Phase 1, for an engine that refuses new work already. True where everything ended by itself.
bool WaitQuiet(Engine* engine, const OpenCalls& calls, std::chrono::milliseconds grace);

// Phase 2; takes at most a second and a half. A job that is still inside a step by then is declared
// CANCELLED, or left to the next start, all the same, so that its watchers know.
void EndWork(Engine* engine, const OpenCalls& calls, Logger* logger);

}  // namespace denoised

#endif  // DENOISED_SERVER_DRAIN_H_
