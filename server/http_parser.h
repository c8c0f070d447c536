// HTTP/1.x request heads, taken apart. A pure function over bytes, so that it can be fuzzed.
#ifndef DENOISED_SERVER_HTTP_PARSER_H_
#define DENOISED_SERVER_HTTP_PARSER_H_

#include <cstdint>
#include <string>
#include <string_view>

namespace denoised {

// A longer head is refused (431); no request of a browser, probe or scraper comes near.
inline constexpr size_t kMaxHttpHead = 16 << 10;

struct HttpRequest {
  std::string method;
  std::string path;   // starts with '/'; as sent, nothing is decoded
  std::string query;  // what follows '?'
  uint64_t content_length = 0;
  bool keep_alive = true;    // by version and the Connection header
  bool takes_chunks = true;  // by version
};

struct HttpHead {
  enum class State : uint8_t { kIncomplete, kComplete, kRefused };
  State state = State::kIncomplete;
  size_t used = 0;      // complete: bytes of the head
  HttpRequest request;  // complete
  int status = 0;       // refused: the answer's status
  std::string why;      // refused: a short sentence without anything that was sent
};

// The first request head in `bytes`. Refused is for good: what follows cannot be told apart.
HttpHead ParseHttpHead(std::string_view bytes);

}  // namespace denoised

#endif  // DENOISED_SERVER_HTTP_PARSER_H_
