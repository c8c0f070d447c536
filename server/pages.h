// What the HTTP port shows: /metrics, /healthz, /readyz. GET and HEAD only.
#ifndef DENOISED_SERVER_PAGES_H_
#define DENOISED_SERVER_PAGES_H_

#include <functional>
#include <string>

#include "server/http_server.h"

namespace denoised {

// What the pages are made of. Called from the HTTP thread; must not block.
struct PageSources {
  std::function<HttpPieces()> metrics;  // a page from its beginning
  // "" = ready as far as the server knows; else why not ("loading", "draining").
  std::function<std::string()> not_ready;
  // What /readyz adds below "ready": models that could not be loaded.
  std::function<std::string()> ready_note;
  // Asks the public gRPC port over a new connection; the answer, "" or what is wrong, comes later.
  std::function<void(std::function<void(std::string)>)> check_port;
};

HttpHandler MakePages(PageSources sources);

}  // namespace denoised

#endif  // DENOISED_SERVER_PAGES_H_
