// The control channel, the controller's end: JSON in mapped files, semaphores as doorbells. Does not interpret
// messages. tr_mmap/channel/mapped.py and doorbell.py are the Python side, and specify the files.
#ifndef TR_MMAP_CHANNEL_HPP
#define TR_MMAP_CHANNEL_HPP

#include "macros_off.hpp"

#include <semaphore.h>
#include <time.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "clock.hpp"
#include "identifiers.hpp"
#include "layout.hpp"
#include "mac.hpp"
#include "mirror.hpp"
#include "protocol.hpp"
#include "ring.hpp"
#include "system.hpp"
#include "wire.hpp"

namespace tr {
namespace detail {

/// A named semaphore that tells its waiter to look again. A hint, never a lock, so any count in it is harmless.
class Doorbell {
public:
    /// @throws OutOfSpace there is no room where the system keeps semaphores.
    /// @throws SemaphoresUnavailable the system has none for this user.
    explicit Doorbell(std::string name) : name_(std::move(name)) {
        semaphore_ = ::sem_open(name_.c_str(), O_CREAT | O_EXCL, 0600, 0);
        if (semaphore_ == SEM_FAILED) refuse(errno);
    }
    Doorbell(const Doorbell&) = delete;
    Doorbell& operator=(const Doorbell&) = delete;
    ~Doorbell() {
        unlink();
        ::sem_close(semaphore_);
    }

    void ring() noexcept { ::sem_post(semaphore_); }  // fails only if 2**31 rings are there already: enough to wake it

    /// Sleep until rung, or until the deadline; early after a signal.
    ///
    /// @return false when the time is over.
    bool wait(Clock::time_point deadline) noexcept {
        if (drain()) return true;
#if defined(__GLIBC__) && defined(__GLIBC_PREREQ)
#if __GLIBC_PREREQ(2, 30)
#define TR_MMAP_HAS_CLOCKWAIT 1  // not disturbed when the wall clock is set
#endif
#endif
#ifdef TR_MMAP_HAS_CLOCKWAIT
        const clockid_t clock = CLOCK_MONOTONIC;
        constexpr std::int64_t slice_ns = std::numeric_limits<std::int64_t>::max();
#else
        const clockid_t clock = CLOCK_REALTIME;
        constexpr std::int64_t slice_ns = 50'000'000;  // a wall clock that is set meanwhile disturbs one slice only
#endif
        while (true) {
            const auto left = std::chrono::duration_cast<std::chrono::nanoseconds>(deadline - Clock::now()).count();
            if (left <= 0) return false;
            struct timespec until;
            ::clock_gettime(clock, &until);
            const std::int64_t nanoseconds = until.tv_nsec + std::min<std::int64_t>(left, slice_ns);
            until.tv_sec += static_cast<time_t>(nanoseconds / 1'000'000'000);
            until.tv_nsec = static_cast<long>(nanoseconds % 1'000'000'000);
#ifdef TR_MMAP_HAS_CLOCKWAIT
            if (::sem_clockwait(semaphore_, clock, &until) == 0 || errno != ETIMEDOUT) return true;
#undef TR_MMAP_HAS_CLOCKWAIT
#else
            if (::sem_timedwait(semaphore_, &until) == 0 || errno != ETIMEDOUT) return true;
#endif
        }
    }

    /// Remove the name; both open ends go on working, and nothing is left if both processes die.
    void unlink() noexcept { ::sem_unlink(name_.c_str()); }

private:
    /// Take all rings that have come already. Together they are one hint. They may belong to messages that were found
    /// without a wait: without this, each of them would wake a later wait for nothing.
    bool drain() noexcept {
        int count = 0;
        while (count < wire::max_drained_rings && ::sem_trywait(semaphore_) == 0) ++count;
        return count > 0;
    }

    [[noreturn]] void refuse(int code) const {
        const std::string place = wire::shm_dir;
        if (code == ENOSPC || code == EDQUOT) {
            const std::uint64_t free = free_nbytes(place);
            throw OutOfSpace("there is no room for a semaphore in " + place + ", " + std::to_string(free) +
                                 " bytes are free; free space there",
                             sizeof(sem_t), free);
        }
        // With these codes semaphores are available: the name is taken, or something is short at the moment.
        for (const int other : {EEXIST, EMFILE, ENFILE, ENOMEM, EINTR, EIO}) {
            if (code == other) fail_call("semaphore " + name_, code);
        }
        throw SemaphoresUnavailable("POSIX semaphores cannot be used here", code,
                                    "Linux keeps them in " + place + ": mount a tmpfs there that this user may write "
                                    "(mount -t tmpfs -o mode=1777 tmpfs " + place + "), or use a Python controller "
                                    "with channel=\"files\", which needs none");
    }

    std::string name_;
    sem_t* semaphore_;
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

/// Counts a thread for as long as it lives.
class Counted {
public:
    explicit Counted(std::atomic<int>& count) noexcept : count_(count) { ++count_; }
    Counted(const Counted&) = delete;
    Counted& operator=(const Counted&) = delete;
    ~Counted() { --count_; }

private:
    std::atomic<int>& count_;
};

class Channel {
public:
    /// New names for the doorbells. The manifest gets them before the doorbells exist, so a sweep finds every doorbell.
    static std::vector<std::string> new_doorbells() {
        const std::string stem = wire::doorbell_prefix + std::to_string(::getpid()) + "_" + random_hex(8) + "_";
        return {stem + "q", stem + "r"};
    }

    /// @param secret signs what either side sends; "" to sign nothing.
    /// @param rejected counts messages that the worker has not signed.
    Channel(std::string directory, const std::vector<std::string>& doorbells, const std::string& secret,
            std::atomic<std::uint64_t>& rejected)
        : directory_(std::move(directory)),
          request_doorbell_(doorbells.at(0)),
          response_doorbell_(doorbells.at(1)),
          requests_(create_ring(wire::request_ring_file)),
          responses_(create_ring(wire::response_ring_file)),
          status_(create_status()),
          request_mirror_(requests_, directory_ + "/" + wire::request_file),
          // This mirror must not overwrite an `exit` that somebody wrote by hand and the worker has not read yet.
          status_mirror_(status_, directory_ + "/" + wire::status_file, wire::status_exit),
          rejected_(rejected) {
        if (!secret.empty()) {
            signer_.emplace(secret);
            verifier_.emplace(secret);
        }
        request_mirror_.create();
        status_mirror_.create();
        Mirror(responses_, directory_ + "/" + wire::response_file).create();  // the worker updates it
    }

    /// Append a request, or throw and store nothing. One thread at a time.
    ///
    /// @throws BadMessage it is longer than a message may be.
    /// @throws OutOfSpace no room for it.
    void send(const Request& request) {
        std::string rest = encode_rest(request);
        if (signer_) rest = signer_->sign(request.seq, std::move(rest));
        if (!Ring::is_room_for(rest.size())) {
            const std::string text = "{\"seq\":" + std::to_string(request.seq) + rest;
            if (text.size() > wire::max_message_nbytes) {
                throw BadMessage("the message has " + std::to_string(text.size()) + " bytes, more than " +
                                     std::to_string(wire::max_message_nbytes) + "; send large data as a tensor",
                                 std::to_string(text.size()));
            }
            rest = ",\"spill\":\"" + write_spill(text) + "\"}";
        }
        requests_.store(request.seq, rest);
        if (signer_) signer_->sent(request.seq);
        request_doorbell_.ring();
        is_sent_ = true;
    }

    /// Cancel a request that was sent. As send(), one thread at a time.
    ///
    /// @param order how many were sent to this worker before it.
    /// @returns whether no handler was called for it, and none will be.
    bool cancel(std::uint64_t order) {
        if (requests_.cancel(order)) return true;
        request_doorbell_.ring();  // the worker cancels a coroutine when it looks
        return false;
    }

    /// Update the files for people at once after a request was sent, because its caller may not wait for the response.
    void show_sent() noexcept {
        const std::lock_guard<std::mutex> lock(mirroring_);
        request_mirror_.update();
        status_mirror_.foretell_busy();
        is_sent_ = false;
        if (!responses_.has_answer_to(requests_)) return;
        // The worker may have written its mirror before ours. If it answers later, it also writes later.
        status_mirror_.forget();
        status_mirror_.update();
    }

    /// Whether a response waits to be taken. This and the next three: one thread at a time.
    bool has_message() const { return responses_.has_message(); }

    /// The worker's next message; nothing if there is none. The same until advance().
    ///
    /// @throws BadMessage it cannot be read, or is too long for one. It is there until advance().
    /// @throws SystemError no descriptor is left to read it: it can be read later.
    std::optional<std::string> peek() {
        while (!next_) {
            std::optional<std::string> line = responses_.peek();
            if (!line) break;
            if (!verifier_) {
                next_ = whole(*line);
                break;
            }
            try {
                std::string text = whole(*line);
                if (verifier_->accept(text)) next_ = std::move(text);
            } catch (const BadMessage&) {  // it is no message at all
            }
            if (next_) break;
            ++rejected_;
            responses_.reject(std::move(*line));
        }
        return next_;
    }

    /// The number of the message that peek() has given, also if it could not be read; 0 if it has none.
    std::uint32_t next_seq() const {
        const std::uint64_t word = responses_.next_number();
        char digits[wire::number_digits];
        std::memcpy(digits, &word, sizeof digits);
        std::uint32_t seq = 0;
        for (const char digit : digits) {
            if (digit >= '0' && digit <= '9') seq = seq * 10 + static_cast<std::uint32_t>(digit - '0');
            else if (digit != ' ' || seq != 0) return 0;
        }
        return seq;
    }

    /// Take the message that peek() has given.
    ///
    /// @param is_consumed whether the worker may release the tensors of it, and of all before it.
    void advance(bool is_consumed) {
        responses_.advance();
        next_.reset();
        if (is_consumed) responses_.all_done();
    }

    /// The worker may release the tensors of all messages that were taken.
    void all_consumed() { responses_.all_done(); }

    /// Sleep until there is a message, until the deadline, or until ``stop`` says so when woken.
    template <class Stop>
    void wait(Clock::time_point deadline, Stop stop) {
        const Counted counted(receivers_);
        while (!has_message() && !stop() && Clock::now() < deadline) sleep(deadline);
    }

    /// The present status; if the text there is no status, the last one that could be read.
    Status read_status() const {
        for (int retry = 0;; ++retry) {
            try {
                last_status_ = parse_status(status_line());
            } catch (const BadMessage&) {  // perhaps read in the middle of a store
                if (retry < wire::status_retries) {
                    sleep_s(wire::status_retry_s);
                    continue;
                }
            }
            return last_status_;
        }
    }

    /// Whether the worker has stored the status "terminated": its service has ended, and it sends no response after
    /// that.
    bool says_farewell() const noexcept {
        return load_word(words_of(status_.data())) == word_of_digits(wire::status_terminated);
    }

    /// Whether the worker has begun with a request of the controller's, and is not in one that was written by hand.
    ///
    /// @param order how many were sent to this worker before it.
    bool is_taken_up(std::uint64_t order) const {
        return requests_.done_by_peer() > order && read_status() == Status::BUSY && !is_busy_by_hand();
    }

    /// Whether the worker is in a request that somebody wrote by hand, and not in the controller's.
    bool is_busy_by_hand() const {
        return starts_with(status_line(), std::string(wire::status_busy) + ": " + wire::busy_by_hand);
    }

    /// Milliseconds since the worker last took a request, used a tensor or answered; nothing if it never has, or if the
    /// page holds no time.
    std::optional<double> heartbeat_age_ms() const {
        const std::uint64_t word = load_word(words_of(status_.data() + wire::heartbeat_offset));
        char digits[wire::heartbeat_digits];
        static_assert(sizeof digits == sizeof word);
        std::memcpy(digits, &word, sizeof digits);
        std::uint32_t then = 0;
        for (const char digit : digits) {
            if (digit >= '0' && digit <= '9') then = then << 4 | static_cast<std::uint32_t>(digit - '0');
            else if (digit >= 'a' && digit <= 'f') then = then << 4 | static_cast<std::uint32_t>(digit - 'a' + 10);
            else return {};
        }
        struct timespec now;
        ::clock_gettime(CLOCK_MONOTONIC, &now);
        const std::uint64_t now_ms = static_cast<std::uint64_t>(now.tv_sec) * 1000 +
                                     static_cast<std::uint64_t>(now.tv_nsec) / 1'000'000;
        const std::uint32_t age = static_cast<std::uint32_t>(now_ms) - then;
        // If the worker has stored its time after we read the clock, the difference wraps around.
        if (age > std::numeric_limits<std::uint32_t>::max() / 2) return 0.0;
        return age + static_cast<double>(now.tv_nsec % 1'000'000) / 1e6;
    }

    /// Wait for a status; nothing on timeout or stop.
    template <class Until, class Stop>
    std::optional<Status> wait_status(Until until, Clock::time_point deadline, Stop stop) {
        while (true) {
            const Status status = read_status();
            if (until(status)) return status;
            if (stop() || Clock::now() >= deadline) return {};
            // A ring wakes only one thread. So while a thread waits for a message, only that one waits at the doorbell.
            const auto latest = std::min(deadline, deadline_in(1000 * wire::status_slice_s));
            if (receivers_ > 0) std::this_thread::sleep_until(latest);
            else if (response_doorbell_.wait(latest) && receivers_ > 0) wake();  // pass the ring on to a new receiver
        }
    }

    /// Make a wait of this end look again. For other threads; never blocks.
    void wake() noexcept { response_doorbell_.ring(); }

private:
    Fd create_ring(const char* name) const {
        return create_control_file(directory_, name, Ring::empty(), wire::ring_nbytes);
    }

    Mapping create_status() const {
        const std::string line = std::string(wire::status_starting) + '\n';
        return map_write(create_control_file(directory_, wire::status_page_file, line, wire::status_nbytes),
                         wire::status_nbytes);
    }

    /// Wait for the doorbell, but at most for one slice: a ring may be lost. A wait that lasts for a while first
    /// updates the mirrors; so a burst of requests does not write them.
    void sleep(Clock::time_point deadline) {
        if (has_to_show()) {
            if (response_doorbell_.wait(std::min(deadline, deadline_in(1000 * wire::mirror_delay_s)))) return;
            const std::unique_lock<std::mutex> lock(mirroring_, std::try_to_lock);
            if (lock) {
                request_mirror_.update();
                if (is_sent_.exchange(false)) status_mirror_.forget();  // the worker may have written it meanwhile
                status_mirror_.update();
            }
        }
        response_doorbell_.wait(std::min(deadline, deadline_in(1000 * wire::wait_slice_s)));
    }

    bool has_to_show() {
        if (is_sent_) return true;
        const std::unique_lock<std::mutex> lock(mirroring_, std::try_to_lock);  // else another thread shows it
        return lock && (request_mirror_.is_stale() || status_mirror_.is_stale());
    }

    std::string status_line() const {
        std::string text(reinterpret_cast<const char*>(status_.data()), wire::heartbeat_offset);
        const std::size_t end = text.find('\n');
        text.resize(end == std::string::npos ? 80 : end);
        constexpr std::string_view padding("\0 ", 2);  // NULs too: another program may have padded the line with them
        text.erase(0, text.find_first_not_of(padding));
        text.resize(text.find_last_not_of(padding) + 1);  // 0 if there is nothing else
        return text;
    }

    /// The message that a slot's line is, or names.
    std::string whole(const std::string& line) const {
        // The first member after the number, if the message is in a file of its own.
        constexpr std::string_view spill_start = ",\"spill\":";
        if (line.size() < wire::message_rest_offset ||
            line.compare(wire::message_rest_offset, spill_start.size(), spill_start) != 0) {
            return line;
        }
        const json::Value fields = json::parse(line);
        const json::Value* name = fields.find("spill");
        return read_spill(name && name->is<std::string>() ? *name->get<std::string>() : "");
    }

    std::string write_spill(const std::string& text) {
        const std::string name = std::string(wire::request_stem) + "." + spill_token_ + "_" +
                                 std::to_string(++spill_number_) + wire::spill_suffix;
        known_directory_.check();
        const std::string path = directory_ + "/" + name;
        const Fd fd = create_file(path);
        Unlinker unlinker(path);
        write_all(fd, text.data(), text.size(), 0, directory_);
        unlinker.keep();
        return name;
    }

    std::string read_spill(const std::string& name) const {
        if (!is_spill_name(name, wire::response_stem)) {
            throw BadMessage("'" + name.substr(0, 80) + "' is not the name of a long message", name.substr(0, 80));
        }
        const std::string path = directory_ + "/" + name;
        const Fd fd = open_spill(path, name);
        known_directory_.check();  // now: what was opened before this is in the directory
        if (!fd) throw BadMessage(path + " is gone, in which the message should be", name);
        const bool is_too_long = file_nbytes(fd, path) > wire::max_message_nbytes;
        std::string text = is_too_long ? "" : read_all(fd, wire::max_message_nbytes, 0, path);
        unlink_file(path);
        if (is_too_long) throw BadMessage(path + " is longer than a message may be", name);
        return text;
    }

    static Fd open_spill(const std::string& path, const std::string& name) {
        try {
            return open_private_file(path);
        } catch (const HostilePath& error) {
            throw BadMessage(std::string(error.what()) + "; the message in its place is ignored", name);
        }
    }

    std::string directory_;
    KnownDirectory known_directory_{directory_};
    Doorbell request_doorbell_;
    Doorbell response_doorbell_;
    Ring requests_;
    Ring responses_;
    Mapping status_;
    Mirror request_mirror_;
    Mirror status_mirror_;
    std::optional<Signer> signer_;
    std::optional<Verifier> verifier_;
    std::atomic<std::uint64_t>& rejected_;
    std::optional<std::string> next_;  // what peek() has given
    std::mutex mirroring_;
    std::atomic<bool> is_sent_{false};  // a request was sent since the mirror of the status was written
    std::atomic<int> receivers_{0};  // threads that wait for a message
    mutable std::atomic<Status> last_status_{Status::STARTING};  // the last that could be read
    std::string spill_token_ = random_hex(4);  // in the names of long messages; an earlier channel had another one
    std::uint64_t spill_number_ = 0;
};

}  // namespace detail
}  // namespace tr

#include "macros_on.hpp"

#endif  // TR_MMAP_CHANNEL_HPP
