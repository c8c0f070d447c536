// The server's flags as a table (flags.h): names, defaults, help, and setters that write into a
// Config with the ranges that they allow.
#ifndef DENOISED_SERVER_CONFIG_FLAGS_H_
#define DENOISED_SERVER_CONFIG_FLAGS_H_

#include <string>
#include <vector>

#include "server/config.h"
#include "server/flags.h"

namespace denoised {

// Everything that the file may say too. The setters write into `config`, which must outlive them.
std::vector<Flag> FileFlags(Config* config);

// Those, and what only the command line may say: --config, into `config_path`, --help and
// --version.
std::vector<Flag> AllFlags(Config* config, std::string* config_path);

}  // namespace denoised

#endif  // DENOISED_SERVER_CONFIG_FLAGS_H_
