// What a session owns: its directory, its tensors, the worker that runs in it. Knows nothing of requests.
#ifndef TR_MMAP_SESSION_RESOURCES_HPP
#define TR_MMAP_SESSION_RESOURCES_HPP

#include "macros_off.hpp"

#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "channel.hpp"
#include "clock.hpp"
#include "fork_safety.hpp"
#include "identifiers.hpp"
#include "life_lock.hpp"
#include "launch.hpp"
#include "manifest.hpp"
#include "options.hpp"
#include "pool.hpp"
#include "process.hpp"
#include "segment_reader.hpp"
#include "waiting.hpp"
#include "watch.hpp"
#include "wire.hpp"
#include "worker_log.hpp"
#include "workspace.hpp"

namespace tr {
namespace detail {

/// A running worker and this side's ends of what connects to it, from start() until the worker is gone.
struct WorkerHandle {
    /// @param changed raised when the worker has ended.
    /// @param sent how many requests the session has sent before.
    WorkerHandle(std::unique_ptr<Channel> own_channel, std::shared_ptr<WorkerProcess> own_process,
                 const std::string& directory, bool is_to_verify, std::shared_ptr<Signal> changed, std::uint64_t sent)
        : channel(std::move(own_channel)),
          process(std::move(own_process)),
          sent_before(sent),
          reader_(directory, is_to_verify),
          watch(process->identity(), [woken = channel.get(), changed = std::move(changed)] {
              woken->wake();
              changed->raise();
          }) {}

    /// Whether the worker has ended, or has ended its service.
    bool is_over() const noexcept {
        return is_given_up_ || watch.is_dead() || process->is_known_to_have_ended() || (channel->says_farewell() && is_farewell_old());
    }

    /// Let is_over() be true, because this side has seen the worker's end in another way. Ends its waits.
    void give_up() noexcept {
        is_given_up_ = true;
        channel->wake();
    }

    /// Views of a response's tensors, which hold the leases. For any thread.
    std::vector<Tensor> receive(const std::vector<TensorRef>& refs) {
        const std::lock_guard<std::mutex> lock(reading_);
        std::vector<Tensor> tensors;
        for (const TensorRef& ref : refs) tensors.push_back(reader_.receive(ref));
        return tensors;
    }

    /// Whether the worker has ended, or has ended its service. Waits a moment for a process that is just ending.
    bool has_left() const {
        if (!process->is_alive()) return true;
        if (has_ended_service_) return true;
        if (!channel->says_farewell()) return false;
        if (!process->wait(deadline_in(1000 * wire::farewell_grace_s))) has_ended_service_ = true;
        return true;
    }

    /// Whether it has ended its service, and its process waits for threads or processes of its own.
    bool lives_on() const { return has_ended_service_ && process->is_alive(); }

    /// Whether this side has seen for a while that the worker has ended its service.
    bool has_ended_service() const noexcept { return has_ended_service_; }

    /// End the worker and its children, as far as they live.
    void end() noexcept {
        try {
            // A dead worker's children get no grace: the worker could have waited for them.
            process->terminate_tree(process->is_alive() ? terminate_grace_ms : 0);
        } catch (...) {
            // The worker watches its controller, and ends when this process does.
        }
    }

    const std::unique_ptr<Channel> channel;
    const std::shared_ptr<WorkerProcess> process;
    const std::uint64_t sent_before;  // how many requests the session had sent when this worker started
    bool is_told_to_exit = false;     // the request to exit was sent; the mutex of the session's flow guards it

private:
    std::mutex reading_;
    SegmentReader reader_;

public:
    PeerWatch watch;  // after the channel that its thread wakes, so that it is stopped first

private:
    /// Whether the status "terminated" was seen a while ago: then the process is not just ending, but waits for
    /// something.
    bool is_farewell_old() const noexcept {
        const std::int64_t now = Clock::now().time_since_epoch() / std::chrono::milliseconds(1);
        std::int64_t first = 0;
        if (farewell_ms_.compare_exchange_strong(first, now)) first = now;
        if (static_cast<double>(now - first) < 1000 * wire::farewell_grace_s) return false;
        has_ended_service_ = true;
        return true;
    }

    std::atomic<bool> is_given_up_{false};
    mutable std::atomic<std::int64_t> farewell_ms_{0};  // when this side first saw that; 0 if it has not
    mutable std::atomic<bool> has_ended_service_{false};
};

/// Whether a file is one that a worker leaves behind: a result, or a long message.
inline bool is_leftover(std::string_view name) {
    return is_result_name(name) || is_spill_name(name, wire::request_stem) || is_spill_name(name, wire::response_stem);
}

class SessionResources {
public:
    /// @param place of the workspace.
    /// @param changed raised when a worker has ended.
    /// @param pause called while the pool waits for room; may throw to end that wait.
    /// @throws SessionInUse another process, or another session of this one, has the name.
    SessionResources(const std::string& session_id, const SessionOptions& options, const std::string& place,
                     std::shared_ptr<Signal> changed, std::function<void()> pause)
        : options_(options), session_id_(session_id), workspace_(Workspace::at(place)), changed_(std::move(changed)) {
        try {
            workspace_.sweep();
        } catch (const TRException&) {
            // If another session's remains cannot be removed, this session can start all the same.
        }
        directory_ = workspace_.claim(manifest(), lock_);
        if (::lstat(directory_.c_str(), &claimed_) != 0) claimed_ = {};  // then only the lock shows that it is ours
        const auto is_reader_gone = [this] {
            const std::shared_ptr<WorkerHandle> last = worker();
            return last && last->is_over();
        };
        try {
            pool_ = std::make_unique<SegmentPool>(directory_, options.budget_nbytes, options.block_ms,
                                                  options.has_checksum, is_reader_gone, std::move(pause));
        } catch (...) {
            workspace_.release(session_id_);
            throw;
        }
    }
    SessionResources(const SessionResources&) = delete;
    SessionResources& operator=(const SessionResources&) = delete;
    ~SessionResources() { release(); }

    /// End the worker if it lives, remove the directory. Idempotent.
    void release() noexcept {
        if (is_released_ || !is_of_this_process()) return;  // in a forked child all of this belongs to the parent
        is_released_ = true;
        if (const auto last = take_worker()) last->end();
        pool_->close();
        remove_directory();
        remove_log(log_path_);
        lock_.drop();
    }

    const std::string& directory() const noexcept { return directory_; }
    const std::string& session_id() const noexcept { return session_id_; }
    SegmentPool& pool() noexcept { return *pool_; }
    bool is_of_this_process() const { return ForkState::pid() == owner_pid_; }

    /// The worker, null if there is none; for any thread.
    std::shared_ptr<WorkerHandle> worker() const {
        const std::lock_guard<std::mutex> lock(mutex_);
        return worker_;
    }

    /// Start a worker over new control files; does not wait for it.
    ///
    /// @param sent how many requests the session has sent before.
    /// @throws SessionNotStarted somebody has removed the session's directory.
    void start(const std::string& script_path, bool is_quiet, std::uint64_t sent) {
        workspace_.check_session(session_id_);
        if (!has_directory()) {
            throw SessionNotStarted("the directory of session '" + session_id_ + "', " + directory_ +
                                    ", was removed while the session lived; close() this session, and start another");
        }
        remove_leftovers();
        remove_log(log_path_);
        log_path_ = new_log_path(directory_);
        Manifest known = manifest();
        known.worker_mark = std::to_string(::getpid()) + "-" + random_hex(8);
        known.doorbells = Channel::new_doorbells();
        // Before the doorbells exist, so that a sweep finds their names whenever we are killed.
        write_manifest(directory_, known);
        const std::string secret = options_.has_auth ? random_bytes(secret_nbytes) : "";
        auto channel = std::make_unique<Channel>(directory_, known.doorbells, secret, rejected_);
        const std::shared_ptr<WorkerProcess> process =
            launch(script_path, session_id_, workspace_, options_, known.worker_mark, log_path_, is_quiet, secret);
        try {
            known.worker = process->identity();
            write_manifest(directory_, known);
            auto started = std::make_shared<WorkerHandle>(std::move(channel), process, directory_,
                                                          options_.has_checksum, changed_, sent);
            const std::lock_guard<std::mutex> lock(mutex_);
            worker_ = std::move(started);
        } catch (...) {
            process->terminate_tree(0);
            throw;
        }
    }

    /// How many messages were ignored since the session began, because the worker had not signed them.
    std::uint64_t rejected() const noexcept { return rejected_; }

    /// Release a worker that has ended, and remove what it left.
    void forget_worker() {
        if (const auto last = take_worker()) last->end();
        if (has_directory()) remove_leftovers();
    }

private:
    /// Remove the directory, if it is this object's.
    void remove_directory() noexcept {
        try {
            // If it is not ours, somebody has removed ours by hand, and the name belongs to another session by now.
            if (!has_directory() && std::filesystem::exists(directory_)) return;
            try {
                workspace_.release(session_id_);
            } catch (const SystemLimit&) {
                lock_.drop();  // frees a descriptor for the removal; our pid still shows that the session is in use
                workspace_.release(session_id_);
            }
        } catch (...) {
            // The next sweep removes it.
        }
    }

    /// Whether the directory still belongs to this object; also if the lock file in it was removed or replaced by hand.
    bool has_directory() const {
        const std::string lock = directory_ + "/" + wire::controller_lock_file;
        if (lock_.is_at(lock)) return true;
        struct stat named;
        if (::lstat(directory_.c_str(), &named) != 0 || named.st_dev != claimed_.st_dev ||
            named.st_ino != claimed_.st_ino) {
            return false;
        }
        // A file system may give the inode of a removed directory to another session's. That one holds its own lock,
        // and its manifest names its controller.
        if (is_lock_held(lock)) return false;
        try {
            const std::optional<Manifest> found = read_manifest(directory_);
            return !found || found->controller == Identity::current();
        } catch (const BadMessage&) {
            return true;
        } catch (const HostilePath&) {
            return true;
        }
    }

    Manifest manifest() const {
        Manifest result;
        result.session_id = session_id_;
        result.controller = Identity::current();
        result.budget_nbytes = options_.budget_nbytes;
        result.block_ms = options_.block_ms;
        result.has_checksum = options_.has_checksum;
        result.log = log_path_;
        result.created_ms = now_ms();
        return result;
    }

    std::shared_ptr<WorkerHandle> take_worker() {
        const std::lock_guard<std::mutex> lock(mutex_);
        return std::exchange(worker_, nullptr);
    }

    /// Remove a dead worker's results and long messages; its successor begins with the same names.
    void remove_leftovers() {
        std::error_code error;
        std::vector<std::filesystem::path> found;
        for (const auto& entry : std::filesystem::directory_iterator(directory_, error)) {
            if (is_leftover(entry.path().filename().string())) found.push_back(entry.path());
        }
        for (const auto& path : found) unlink_file(path.string());
    }

    SessionOptions options_;
    std::string session_id_;
    Workspace workspace_;
    LifeLock lock_;  // held while the session is this object's
    std::shared_ptr<Signal> changed_;
    std::string directory_;
    struct stat claimed_ = {};  // the directory's, as it was claimed
    std::string log_path_;  // of the worker, if the log is outside the directory
    std::atomic<std::uint64_t> rejected_{0};
    pid_t owner_pid_ = ForkState::pid();
    std::unique_ptr<SegmentPool> pool_;
    mutable std::mutex mutex_;  // of worker_
    std::shared_ptr<WorkerHandle> worker_;
    bool is_released_ = false;
};

}  // namespace detail
}  // namespace tr

#include "macros_on.hpp"

#endif  // TR_MMAP_SESSION_RESOURCES_HPP
