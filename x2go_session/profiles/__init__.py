"""Session profiles and settings, in the files of real X2Go clients.

    from x2go_session import profiles

    known = profiles.SessionProfiles()          # ~/.x2goclient, then /etc/x2goclient
    profile = known["Office"]                   # by name or id; typed values

    found = profiles.connection(profile, password=ask)
    with rtunnel.connect(found.destination, **found.options) as tunnel:
        terminal = Terminal(
            Control(tunnel),
            profiles.session_options(profile),
            services=profiles.services(profile, profiles.PrintingFile().action),
        )
        terminal.start()

What python-x2go's client has on top of them: `SessionProfiles.values` and `get`
(get_profile_config), `set` and `write` (set_profile_config), `ids`, `names`, `to_id`,
`to_name`, `in` (is_session_profile), `Profile.metatype`, `ClientSettings.get`,
`PrintingFile.action`, `session_parameters` (to_session_params).
"""

from x2go_session.profiles.connection import Connection as Connection
from x2go_session.profiles.connection import connection as connection
from x2go_session.profiles.parameters import session_parameters as session_parameters
from x2go_session.profiles.plan import not_supported as not_supported
from x2go_session.profiles.plan import services as services
from x2go_session.profiles.plan import session_options as session_options
from x2go_session.profiles.plan import window_title as window_title
from x2go_session.profiles.printing_file import PrintingFile as PrintingFile
from x2go_session.profiles.profile import Profile as Profile
from x2go_session.profiles.sessions_file import SessionProfiles as SessionProfiles
from x2go_session.profiles.sessions_file import profiles_of as profiles_of
from x2go_session.profiles.settings_file import ClientSettings as ClientSettings
