// The original framework's logger. Part of tech_renaissance.h; the library itself logs nothing.
#ifndef TECH_RENAISSANCE_LOGGER_HPP
#define TECH_RENAISSANCE_LOGGER_HPP

// Programs may define such macros; they are restored at the end of this header.
#pragma push_macro("DEBUG")
#pragma push_macro("INFO")
#pragma push_macro("WARN")
#pragma push_macro("ERROR")
#undef DEBUG
#undef INFO
#undef WARN
#undef ERROR

#include <chrono>
#include <ctime>
#include <fstream>
#include <iomanip>
#include <iostream>
#include <mutex>
#include <sstream>
#include <string>

namespace tr {

enum class LogLevel { DEBUG = 0, INFO = 1, WARN = 2, ERROR = 3 };

/// Writes lines "[2025-10-30 14:37:54.524] [INFO] [TR] text" to std::cout, or to a file. For any thread.
///
/// All functions are static, so that Logger::error("x") and Logger::get_instance().error("x") mean the same. What they
/// are given is written one after another: texts, numbers and whatever a std::ostream takes.
class Logger {
public:
    Logger(const Logger&) = delete;
    Logger& operator=(const Logger&) = delete;

    static Logger& get_instance() {
        static Logger& only = *new Logger;  // never destroyed: the last of the static objects may log
        return only;
    }

    template <class... Parts>
    static void debug(const Parts&... parts) {
        get_instance().write(LogLevel::DEBUG, "DEBUG", parts...);
    }
    template <class... Parts>
    static void info(const Parts&... parts) {
        get_instance().write(LogLevel::INFO, "INFO", parts...);
    }
    template <class... Parts>
    static void warn(const Parts&... parts) {
        get_instance().write(LogLevel::WARN, "WARN", parts...);
    }
    template <class... Parts>
    static void warning(const Parts&... parts) {
        warn(parts...);
    }
    template <class... Parts>
    static void error(const Parts&... parts) {
        get_instance().write(LogLevel::ERROR, "ERROR", parts...);
    }

    /// Write only what is of this level or a higher one; at first that is INFO.
    static void set_level(LogLevel level) {
        const std::lock_guard<std::mutex> lock(get_instance().mutex_);
        get_instance().level_ = level;
    }
    /// Append to a file from now on; "" is std::cout again. So is a file that cannot be opened.
    static void set_output_file(const std::string& path) {
        const std::lock_guard<std::mutex> lock(get_instance().mutex_);
        get_instance().path_ = path;
    }
    /// Whether lines of level INFO are left out.
    static void set_quiet_mode(bool quiet_mode) {
        const std::lock_guard<std::mutex> lock(get_instance().mutex_);
        get_instance().is_quiet_ = quiet_mode;
    }
    static void be_quiet() { set_quiet_mode(true); }

private:
    Logger() = default;
    ~Logger() = default;

    template <class... Parts>
    void write(LogLevel level, const char* label, const Parts&... parts) {
        std::ostringstream line;
        line << '[' << time_text() << "] [" << label << "] [TR] ";
        (line << ... << parts);
        line << '\n';
        const std::lock_guard<std::mutex> lock(mutex_);
        if (level < level_ || (is_quiet_ && level == LogLevel::INFO)) return;
        if (!path_.empty()) {
            std::ofstream file(path_, std::ios::app);
            if (file << line.str() << std::flush) return;
        }
        std::cout << line.str() << std::flush;
    }

    static std::string time_text() {
        using namespace std::chrono;
        const auto now = system_clock::now();
        const std::time_t seconds = system_clock::to_time_t(now);
        std::tm parts{};
        ::localtime_r(&seconds, &parts);
        const auto ms = duration_cast<milliseconds>(now.time_since_epoch()).count() % 1000;
        std::ostringstream text;
        text << std::put_time(&parts, "%Y-%m-%d %H:%M:%S") << '.' << std::setfill('0') << std::setw(3) << ms;
        return text.str();
    }

    std::mutex mutex_;
    LogLevel level_ = LogLevel::INFO;
    std::string path_;
    bool is_quiet_ = false;
};

}  // namespace tr

#pragma pop_macro("DEBUG")
#pragma pop_macro("INFO")
#pragma pop_macro("WARN")
#pragma pop_macro("ERROR")

#ifndef TR_LOG_INFO
#define TR_LOG_DEBUG(message) ::tr::Logger::debug(message)
#define TR_LOG_INFO(message) ::tr::Logger::info(message)
#define TR_LOG_WARN(message) ::tr::Logger::warn(message)
#define TR_LOG_ERROR(message) ::tr::Logger::error(message)
#endif

#endif  // TECH_RENAISSANCE_LOGGER_HPP
