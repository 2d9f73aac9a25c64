// What a session may be told beside its script and its name. Decides nothing.
#ifndef TR_MMAP_OPTIONS_HPP
#define TR_MMAP_OPTIONS_HPP

#include "macros_off.hpp"

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace tr {

/// What one more request does while as many are in flight as a session may have.
enum class AtLimit {
    BLOCK,  // it waits, for as long as its timeout lets it
    FAIL,   // it throws Busy
};

/// Options of a session, beside its script and its name. Relative paths are resolved when the session is made.
struct SessionOptions {
    std::string python;                          // the worker's interpreter; "" for $TR_PYTHON, or the package's own
    std::optional<std::uint64_t> budget_nbytes;  // most bytes of tensors that each side holds in shared memory
    double block_ms = 0;        // at the budget, how long to wait for the other side before it is OutOfSpace
    bool has_checksum = false;  // both sides store a CRC-32 of each tensor, and compare it on receipt
    bool has_auth = false;      // both sides sign each control message with a secret that only they have; forged ones are ignored
    std::vector<std::string> args;  // of the worker's script, after the session's id
    std::map<std::string, std::optional<std::string>> env;  // added to this process's environment; nullopt removes
    std::string cwd;            // the worker's working directory; "" for this process's
    int max_in_flight = 32;  // most requests that were sent and whose answers were not taken from the worker; 1 to 62
    AtLimit at_limit = AtLimit::BLOCK;
    bool replace = false;  // start() closes a session of the same id that this process has, instead of refusing
};

}  // namespace tr

#include "macros_on.hpp"

#endif  // TR_MMAP_OPTIONS_HPP
