#include "server/http_parser.h"

#include <algorithm>
#include <charconv>
#include <optional>
#include <utility>

namespace denoised {
namespace {

constexpr int kMaxHeaders = 100;

struct Refusal {
  int status;
  const char* why;
};

bool IsTokenChar(char c) {
  constexpr std::string_view kMarks = "!#$%&'*+-.^_`|~";
  return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
         kMarks.find(c) != std::string_view::npos;
}

bool IsToken(std::string_view text) {
  return !text.empty() && std::all_of(text.begin(), text.end(), IsTokenChar);
}

// Nothing that ends lines or hides text; bytes above ASCII are opaque but allowed.
bool IsFieldText(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) {
    const auto byte = static_cast<unsigned char>(c);
    return byte == '\t' || (byte >= 0x20 && byte != 0x7f);
  });
}

bool IsTarget(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return c > 0x20 && c != 0x7f; });
}

std::string_view Trimmed(std::string_view text) {
  const size_t begin = text.find_first_not_of(" \t");
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(" \t") - begin + 1);
}

std::string Lower(std::string_view text) {
  std::string out(text);
  for (char& c : out) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c + ('a' - 'A'));
  }
  return out;
}

// The next line without its end (CRLF, or LF alone); empty where none is complete.
std::optional<std::string_view> TakeLine(std::string_view bytes, size_t* at) {
  const size_t end = bytes.find('\n', *at);
  if (end == std::string_view::npos) return std::nullopt;
  std::string_view line = bytes.substr(*at, end - *at);
  *at = end + 1;
  if (!line.empty() && line.back() == '\r') line.remove_suffix(1);
  return line;
}

std::optional<Refusal> ReadTarget(std::string_view target, HttpRequest* request) {
  constexpr std::string_view kScheme = "http://";
  if (Lower(target.substr(0, kScheme.size())) == kScheme) {  // the form for proxies
    const size_t slash = target.find('/', kScheme.size());
    target = slash == std::string_view::npos ? "/" : target.substr(slash);
  }
  if (target.empty() || target.front() != '/' || !IsTarget(target)) {
    return Refusal{400, "the request's target is not a path"};
  }
  const size_t question = target.find('?');
  request->path = target.substr(0, question);
  if (question != std::string_view::npos) request->query = target.substr(question + 1);
  return std::nullopt;
}

std::optional<Refusal> ReadRequestLine(std::string_view line, HttpRequest* request) {
  const size_t first = line.find(' ');
  const size_t last = line.rfind(' ');
  if (first == std::string_view::npos || first == last || !IsToken(line.substr(0, first))) {
    return Refusal{400, "the request line is not METHOD TARGET VERSION"};
  }
  const std::string_view version = line.substr(last + 1);
  if (version != "HTTP/1.1" && version != "HTTP/1.0") {
    if (version.substr(0, 5) == "HTTP/") return Refusal{505, "only HTTP/1.0 and HTTP/1.1"};
    return Refusal{400, "the request line is not METHOD TARGET VERSION"};
  }
  request->method = line.substr(0, first);
  request->keep_alive = request->takes_chunks = version == "HTTP/1.1";
  return ReadTarget(line.substr(first + 1, last - first - 1), request);
}

std::optional<Refusal> ReadLength(std::string_view value, bool again, HttpRequest* request) {
  uint64_t length = 0;
  const char* const end = value.data() + value.size();
  const auto [stop, error] = std::from_chars(value.data(), end, length);
  const bool digits = !value.empty() && stop == end && error == std::errc();
  if (!digits || (again && length != request->content_length)) {
    return Refusal{400, "Content-Length is not one number"};
  }
  request->content_length = length;
  return std::nullopt;
}

// The header lines up to the empty one.
class HeaderReader {
 public:
  explicit HeaderReader(HttpRequest* request) : request_(request) {}

  std::optional<Refusal> Read(std::string_view line) {
    if (++count_ > kMaxHeaders) return Refusal{431, "more than 100 headers"};
    const size_t colon = line.find(':');
    if (colon == std::string_view::npos || !IsToken(line.substr(0, colon)) ||
        !IsFieldText(line.substr(colon + 1))) {
      return Refusal{400, "a header is not NAME: VALUE"};
    }
    const std::string name = Lower(line.substr(0, colon));
    const std::string_view value = Trimmed(line.substr(colon + 1));
    if (name == "transfer-encoding") return Refusal{501, "no transfer encodings"};
    if (name == "connection") ReadConnection(value);
    if (name != "content-length") return std::nullopt;
    return ReadLength(value, std::exchange(has_length_, true), request_);
  }

 private:
  void ReadConnection(std::string_view value) {
    const std::string options = Lower(value) + ",";
    for (size_t at = 0; at < options.size();) {
      const size_t end = options.find(',', at);
      const std::string_view option = Trimmed(std::string_view(options).substr(at, end - at));
      if (option == "keep-alive") request_->keep_alive = !closes_;
      if (option == "close") closes_ = true;
      at = end + 1;
    }
    if (closes_) request_->keep_alive = false;
  }

  HttpRequest* const request_;
  int count_ = 0;
  bool closes_ = false;
  bool has_length_ = false;
};

HttpHead Refused(const Refusal& refusal) {
  HttpHead head;
  head.state = HttpHead::State::kRefused;
  head.status = refusal.status;
  head.why = refusal.why;
  return head;
}

HttpHead Incomplete(std::string_view bytes) {
  if (bytes.size() >= kMaxHttpHead) return Refused({431, "the head is longer than 16 KiB"});
  return {};
}

}  // namespace

HttpHead ParseHttpHead(std::string_view bytes) {
  bytes = bytes.substr(0, kMaxHttpHead);
  HttpHead head;
  size_t at = 0;
  auto line = TakeLine(bytes, &at);
  if (line && line->empty()) line = TakeLine(bytes, &at);  // a stray end behind the last request
  if (!line) return Incomplete(bytes);
  if (const auto refusal = ReadRequestLine(*line, &head.request)) return Refused(*refusal);
  HeaderReader headers(&head.request);
  for (;;) {
    line = TakeLine(bytes, &at);
    if (!line) return Incomplete(bytes);
    if (line->empty()) break;
    if (const auto refusal = headers.Read(*line)) return Refused(*refusal);
  }
  head.state = HttpHead::State::kComplete;
  head.used = at;
  return head;
}

}  // namespace denoised
