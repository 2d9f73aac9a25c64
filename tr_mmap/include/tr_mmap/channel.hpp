// The control channel, the controller's end: JSON in mapped files, semaphores as doorbells. Never knows what a message
// means. The Python side, and the layout of the files, are tr_mmap/channel/mapped.py and doorbell.py.
#ifndef TR_MMAP_CHANNEL_HPP
#define TR_MMAP_CHANNEL_HPP

#include <semaphore.h>
#include <time.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "layout.hpp"
#include "protocol.hpp"
#include "system.hpp"

namespace tr {
namespace detail {

using Clock = std::chrono::steady_clock;

/// The moment that is so many milliseconds away; far away for infinity and whatever else a clock cannot hold.
inline Clock::time_point deadline_in(double timeout_ms) {
    constexpr double most_ms = 1e11;  // three years
    const double bounded = std::isnan(timeout_ms) || timeout_ms < 0 ? 0 : timeout_ms > most_ms ? most_ms : timeout_ms;
    return Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double, std::milli>(bounded));
}

inline double remaining_ms(Clock::time_point deadline) {
    const double left = std::chrono::duration<double, std::milli>(deadline - Clock::now()).count();
    return left > 0 ? left : 0;
}

inline std::int64_t now_ms() {
    using namespace std::chrono;
    return duration_cast<milliseconds>(system_clock::now().time_since_epoch()).count();
}

/// A named semaphore that says "look again". A hint, never a lock, so any count in it is harmless.
class Doorbell {
public:
    explicit Doorbell(std::string name) : name_(std::move(name)) {
        semaphore_ = ::sem_open(name_.c_str(), O_CREAT | O_EXCL, 0600, 0);
        if (semaphore_ == SEM_FAILED && errno == ENOSPC) out_of_space(sizeof(sem_t), "/dev/shm");
        if (semaphore_ == SEM_FAILED) throw SystemError("semaphore " + name_, errno);
    }
    Doorbell(const Doorbell&) = delete;
    Doorbell& operator=(const Doorbell&) = delete;
    ~Doorbell() {
        unlink();
        ::sem_close(semaphore_);
    }

    void ring() noexcept { ::sem_post(semaphore_); }

    /// Sleep until rung, or until the deadline; early after a signal.
    void wait(Clock::time_point deadline) noexcept {
        const auto left = std::chrono::duration_cast<std::chrono::nanoseconds>(deadline - Clock::now()).count();
        if (left <= 0) {
            ::sem_trywait(semaphore_);
            return;
        }
#if defined(__GLIBC__) && defined(__GLIBC_PREREQ)
#if __GLIBC_PREREQ(2, 30)
#define TR_MMAP_HAS_CLOCKWAIT 1  // not disturbed by whoever sets the wall clock
#endif
#endif
#ifdef TR_MMAP_HAS_CLOCKWAIT
        const clockid_t clock = CLOCK_MONOTONIC;
#else
        const clockid_t clock = CLOCK_REALTIME;
#endif
        struct timespec until;
        ::clock_gettime(clock, &until);
        const std::int64_t nanoseconds = until.tv_nsec + left;
        until.tv_sec += static_cast<time_t>(nanoseconds / 1'000'000'000);
        until.tv_nsec = static_cast<long>(nanoseconds % 1'000'000'000);
#ifdef TR_MMAP_HAS_CLOCKWAIT
        ::sem_clockwait(semaphore_, clock, &until);
#undef TR_MMAP_HAS_CLOCKWAIT
#else
        ::sem_timedwait(semaphore_, &until);
#endif
    }

    /// Remove the name; both open ends go on working, and nothing is left if both die.
    void unlink() noexcept { ::sem_unlink(name_.c_str()); }

private:
    std::string name_;
    sem_t* semaphore_;
};

inline constexpr std::size_t page_nbytes = 65536;
inline constexpr std::size_t status_nbytes = 4096;
inline constexpr std::size_t page_rest = 16;  // where the members after "seq" begin
inline constexpr char page_start[] = "{\"seq\":        0";
inline constexpr double wait_slice_ms = 5000;  // a lost ring delays a message by this much at most

inline std::uint64_t seq_text(std::uint32_t seq) {
    char text[9];
    std::snprintf(text, sizeof text, "%8u", static_cast<unsigned>(seq % (max_message_seq + 1)));
    std::uint64_t word;
    std::memcpy(&word, text, 8);
    return word;
}

/// One mapped message file: one side stores, the other looks.
class Page {
public:
    explicit Page(const Fd& fd) : mapping_(map_write(fd, page_nbytes)) {}

    /// Blank number, text, number: a reader that sees one number before and after its copy has a whole message.
    void store(std::uint32_t seq, const std::string& rest) {
        std::string text = rest + '\n';
        const std::size_t nbytes = text.size();
        if (nbytes < previous_nbytes_) text.resize(previous_nbytes_, ' ');
        previous_nbytes_ = nbytes;
        store_word(number(), blank);
        full_fence();  // no byte of the text before the blank
        std::memcpy(mapping_.data() + page_rest, text.data(), text.size());
        store_word(number(), seq_text(seq));
    }

    bool has_message() const {
        const std::uint64_t word = load_word(number());
        return word != seen_ && word != blank;
    }

    std::optional<std::string> take() {
        const std::uint64_t word = load_word(number());
        if (word == seen_ || word == blank) return {};
        std::string line = copy(1024);  // most messages; a longer one is copied again, whole
        if (line.empty()) line = copy(page_nbytes);
        full_fence();  // the copy before the second look
        if (load_word(number()) != word) return {};  // being replaced; a ring follows
        seen_ = word;
        if (line.empty()) {
            throw BadMessage("the worker's message has no end; it does not speak this protocol", "newline");
        }
        return line;
    }

private:
    static inline const std::uint64_t blank = seq_text(0);

    std::uint64_t* number() const { return words_of(mapping_.data()) + 1; }
    std::string copy(std::size_t limit) const {
        std::string text(reinterpret_cast<const char*>(mapping_.data()), limit);
        const std::size_t end = text.find('\n');
        return end == std::string::npos ? std::string() : text.substr(0, end);
    }

    Mapping mapping_;
    std::size_t previous_nbytes_ = 0;
    std::uint64_t seen_ = blank;
};

/// Put a new control file in place; a process that still has the old one mapped keeps the old one.
inline Fd create_control_file(const std::string& directory, const char* name, std::string content, std::size_t nbytes) {
    const std::string path = directory + "/" + name;
    unlink_file(path);
    Fd fd = create_file(path);
    allocate(fd, nbytes, directory);
    content.resize(nbytes, ' ');
    write_all(fd, content.data(), nbytes, 0, directory);
    return fd;
}

class Channel {
public:
    /// Names for the doorbells, so that a manifest can tell of them before they exist and none is ever lost.
    static std::vector<std::string> new_doorbells() {
        const std::string stem = "/tr_" + std::to_string(::getpid()) + "_" + random_hex(8) + "_";
        return {stem + "q", stem + "r"};
    }

    Channel(std::string directory, const std::vector<std::string>& doorbells)
        : directory_(std::move(directory)),
          request_bell_(doorbells.at(0)),
          response_bell_(doorbells.at(1)),
          out_(create_control_file(directory_, "request.json", std::string(page_start) + "}\n", page_nbytes)),
          in_(create_control_file(directory_, "response.json", std::string(page_start) + "}\n", page_nbytes)),
          status_(map_write(create_control_file(directory_, "status.txt", "starting\n", status_nbytes), status_nbytes)) {
    }

    /// Publish a request whole, or throw and leave the previous one.
    void send(const Request& request) {
        std::string rest = encode_rest(request);
        if (rest.size() > page_nbytes - 32) {
            const std::string text = "{\"seq\":" + std::to_string(request.seq) + rest;
            if (text.size() > max_message_nbytes) {
                throw BadMessage("the message has " + std::to_string(text.size()) + " bytes, more than " +
                                     std::to_string(max_message_nbytes) + "; send large data as a tensor",
                                 std::to_string(text.size()));
            }
            rest = ",\"spill\":\"" + write_spill(text) + "\"}";
        }
        out_.store(request.seq, rest);
        request_bell_.ring();
    }

    /// Whether a response waits to be taken.
    bool has_message() const { return in_.has_message(); }

    /// Take the worker's next message; waits until the deadline, or until ``stop`` says so when woken.
    template <class Stop>
    std::optional<std::string> receive(Clock::time_point deadline, Stop stop) {
        while (true) {
            std::optional<std::string> message = take();
            if (message) return message;
            if (stop() || Clock::now() >= deadline) return take();  // it may have come just before
            sleep(deadline);
        }
    }

    Status read_status() const {
        for (int look = 0;; ++look) {
            const std::string text(reinterpret_cast<const char*>(status_.data()), status_nbytes);
            const std::size_t end = text.find('\n');
            try {
                return parse_status(std::string_view(text).substr(0, end == std::string::npos ? 80 : end));
            } catch (const BadMessage&) {
                if (look == 3) throw;  // else perhaps read in the middle of a store
                ::usleep(100);
            }
        }
    }

    /// Wait for a status; nothing on timeout or stop.
    template <class Until, class Stop>
    std::optional<Status> wait_status(Until until, Clock::time_point deadline, Stop stop) {
        while (true) {
            const Status status = read_status();
            if (until(status)) return status;
            if (stop() || Clock::now() >= deadline) return {};
            sleep(deadline);
        }
    }

    /// Make a wait of this end look again. For other threads; never blocks.
    void wake() noexcept { response_bell_.ring(); }

private:
    void sleep(Clock::time_point deadline) {
        const Clock::time_point slice = deadline_in(wait_slice_ms);
        response_bell_.wait(slice < deadline ? slice : deadline);
    }

    std::optional<std::string> take() {
        std::optional<std::string> line = in_.take();
        if (line && line->substr(0, 32).find("\"spill\":") != std::string::npos) {
            const json::Value fields = json::parse(*line);
            const json::Value* name = fields.find("spill");
            if (name && name->is<std::string>()) return read_spill(*name->get<std::string>());
        }
        return line;
    }

    std::string write_spill(const std::string& text) {
        const std::string name = "request." + spill_token_ + "_" + std::to_string(++spill_number_) + ".spill";
        Unlinker unlinker(directory_ + "/" + name);
        const Fd fd = create_file(directory_ + "/" + name);
        write_all(fd, text.data(), text.size(), 0, directory_);
        unlinker.keep();
        return name;
    }

    std::string read_spill(const std::string& name) {
        if (!is_plain_name(name_between(name, "response.", ".spill"), 64)) {
            throw BadMessage("'" + name.substr(0, 80) + "' is not the name of a long message", name.substr(0, 80));
        }
        const std::string path = directory_ + "/" + name;
        const Unlinker unlinker(path);
        const Fd fd = open_private_file(path);
        if (!fd) throw BadMessage(path + " is gone, in which the message should be", name);
        if (file_nbytes(fd, path) > max_message_nbytes) {
            throw BadMessage(path + " is longer than a message may be", name);
        }
        return read_all(fd, max_message_nbytes, 0, path);
    }

    std::string directory_;
    Doorbell request_bell_;
    Doorbell response_bell_;
    Page out_;
    Page in_;
    Mapping status_;
    std::string spill_token_ = random_hex(4);
    std::uint64_t spill_number_ = 0;
};

}  // namespace detail
}  // namespace tr

#endif  // TR_MMAP_CHANNEL_HPP
