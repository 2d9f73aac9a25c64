// Deadlines by the monotonic clock, and the wall clock's time for files and messages.
#ifndef TR_MMAP_CLOCK_HPP
#define TR_MMAP_CLOCK_HPP

#include "macros_off.hpp"

#include <chrono>
#include <cmath>
#include <cstdint>
#include <locale>
#include <sstream>
#include <thread>

#include "errors.hpp"

namespace tr {
namespace detail {

using Clock = std::chrono::steady_clock;

/// The moment that is so many milliseconds away. At most three years away, also for infinity, because the clock cannot
/// hold more.
inline Clock::time_point deadline_in(double timeout_ms) {
    constexpr double most_ms = 1e11;
    const double bounded = std::isnan(timeout_ms) || timeout_ms < 0 ? 0 : timeout_ms > most_ms ? most_ms : timeout_ms;
    const std::chrono::duration<double, std::milli> left(bounded);
    return Clock::now() + std::chrono::duration_cast<Clock::duration>(left);
}

/// As deadline_in(), for a timeout that a user gives.
///
/// @throws BadMessage it is negative, or no number.
inline Clock::time_point checked_deadline_in(double timeout_ms) {
    if (timeout_ms >= 0) return deadline_in(timeout_ms);
    std::ostringstream shown;
    shown.imbue(std::locale::classic());
    shown << timeout_ms;
    throw BadMessage("timeout_ms is " + shown.str() +
                         "; it is a number of milliseconds, 0 or more, or infinity for no limit",
                     "timeout_ms");
}

/// Milliseconds until the deadline; 0 if it has passed.
inline double remaining_ms(Clock::time_point deadline) {
    const double left = std::chrono::duration<double, std::milli>(deadline - Clock::now()).count();
    return left > 0 ? left : 0;
}

inline void sleep_s(double seconds) { std::this_thread::sleep_for(std::chrono::duration<double>(seconds)); }

/// Wall clock, milliseconds since 1970.
inline std::int64_t now_ms() {
    using namespace std::chrono;
    return duration_cast<milliseconds>(system_clock::now().time_since_epoch()).count();
}

/// Wall clock, nanoseconds since 1970.
inline std::uint64_t now_ns() {
    using namespace std::chrono;
    return static_cast<std::uint64_t>(duration_cast<nanoseconds>(system_clock::now().time_since_epoch()).count());
}

}  // namespace detail
}  // namespace tr

#include "macros_on.hpp"

#endif  // TR_MMAP_CLOCK_HPP
