// The HTTP listener: /metrics, /healthz, /readyz. GET and HEAD only.
#ifndef DENOISED_SERVER_HTTP_H_
#define DENOISED_SERVER_HTTP_H_

#include <functional>
#include <memory>
#include <string>

#include "server/config.h"

namespace denoised {

// What the pages show. Called from HTTP threads.
struct HttpPages {
  std::function<std::string()> metrics;
  // "" = ready; else why not ("loading", "draining").
  std::function<std::string()> not_ready;
  // What /readyz adds below "ready": models that could not be loaded. Empty: nothing.
  std::function<std::string()> ready_note = {};
};

class HttpServer {
 public:
  // Binds and serves from its own threads. Throws Error (UNAVAILABLE) where the address is taken.
  HttpServer(const ListenAddress& address, HttpPages pages);
  ~HttpServer();  // stops
  HttpServer(const HttpServer&) = delete;
  HttpServer& operator=(const HttpServer&) = delete;

  int port() const;  // the real one where 0 was asked for

 private:
  struct State;
  const std::unique_ptr<State> state_;
};

}  // namespace denoised

#endif  // DENOISED_SERVER_HTTP_H_
