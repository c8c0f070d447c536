#include "server/address.h"

#include <charconv>
#include <optional>

#include "server/flags.h"

namespace denoised {
namespace {

std::optional<ListenAddress> Split(const std::string& text) {
  const size_t colon = text.rfind(':');
  if (colon == std::string::npos || colon + 1 == text.size()) return std::nullopt;
  ListenAddress address{text.substr(0, colon)};
  const char* const end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data() + colon + 1, end, address.port);
  if (stop != end || error != std::errc()) return std::nullopt;
  const std::string& host = address.host;
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') {
    address.host = host.substr(1, host.size() - 2);
    return address;
  }
  if (host.empty() || host.find_first_of("[]: /") != std::string::npos) return std::nullopt;
  return address;
}

std::string WhatIsWrong(const std::string& text) {
  if (text.empty()) return "";
  if (text.find("://") != std::string::npos) return " (nothing like http:// in front)";
  const bool port_only = text.find_first_not_of(":0123456789") == std::string::npos;
  if (port_only) return " (the host is missing)";
  return text.find(':') == std::string::npos ? " (the port is missing)" : "";
}

}  // namespace

std::string ListenAddress::ToString() const {
  const bool v6 = host.find(':') != std::string::npos;
  return (v6 ? "[" + host + "]" : host) + ":" + std::to_string(port);
}

bool ListenAddress::is_loopback() const {
  // A name such as "127.example.org" is not an address of the loopback net.
  const bool dotted = host.find_first_not_of("0123456789.") == std::string::npos;
  return host == "localhost" || host == "::1" || (dotted && host.compare(0, 4, "127.") == 0);
}

ListenAddress ParseAddress(const std::string& flag, const std::string& text, int lowest_port) {
  const auto address = Split(text);
  if (address && address->port >= lowest_port && address->port <= 65535) return *address;
  throw UsageError("--" + flag + " is HOST:PORT with a port from " + std::to_string(lowest_port) +
                   " to 65535, got '" + text + "'" + WhatIsWrong(text));
}

}  // namespace denoised
